"""Figures: shared scales, honest notes, and files that are there in full or not at all."""

import dataclasses
import os
import stat

import numpy as np
import pytest
import torch
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from PIL import Image

from ttreg_hf.measuring.image_maps import ImageMaps
from ttreg_hf.pictures.before_after import plot_before_after
from ttreg_hf.pictures.figures import save_figure
from ttreg_hf.pictures.norm_plots import plot_norms_per_block

PHOTO = np.zeros((32, 32, 3), dtype=np.uint8)


def image_maps(*, outlier: float = 0.0, sink: float = 0.0, register: float | None = None, neuron=None) -> ImageMaps:
    random = torch.Generator().manual_seed(0)
    norms, attention = 5.0 + torch.rand(4, 4, generator=random), torch.full((4, 4), (1 - sink) / 32)
    norms[1, 2] += outlier
    attention[1, 2] += sink
    return ImageMaps(norms, attention, register, torch.randn(4, 4, 8, generator=random), True, torch.zeros(8), neuron)


BEFORE = image_maps(outlier=500.0, sink=0.6)
AFTER = image_maps(register=0.58)


def titled(figure: Figure, title: str):
    return next(axes for axes in figure.axes if axes.get_title() == title)


def texts(figure: Figure) -> str:
    return "\n".join([text.get_text() for text in figure.findobj(lambda part: hasattr(part, "get_text"))])


@pytest.mark.parametrize(
    ("after", "neuron", "count"),
    [(None, False, 4 + 2), (AFTER, False, 8 + 2), (None, True, 5 + 3), (AFTER, True, 9 + 3)],
)
def test_figure_has_one_cell_a_map_and_one_bar_a_scale(after, neuron, count):
    before = dataclasses.replace(BEFORE, neuron_activation=torch.eye(4)) if neuron else BEFORE
    figure = plot_before_after(PHOTO, before, after, title="T")
    assert len(figure.axes) == count
    assert figure.get_size_inches()[0] * figure.dpi == 1200


@pytest.mark.parametrize(("before", "after"), [(BEFORE, AFTER), (AFTER, BEFORE)])
def test_before_and_after_share_the_scale_of_each_column(before, after):
    figure = plot_before_after(PHOTO, before, after, title="T", norm_threshold=50.0)
    by_map: dict[str, list] = {}
    for axes in figure.axes:
        for image in axes.images:
            by_map.setdefault(image.get_cmap().name, []).append(image)
    for name in ("magma", "viridis"):
        first, second = by_map[name]
        assert first.norm is second.norm
        assert (first.norm.vmin, first.norm.vmax) == (
            min(first.get_array().min(), second.get_array().min()),
            max(first.get_array().max(), second.get_array().max()),
        )


def test_scale_is_logarithmic_only_where_values_differ_much():
    spread = plot_before_after(PHOTO, BEFORE, AFTER, title="T")
    assert isinstance(titled(spread, "Patch norms").images[0].norm, LogNorm)
    flat = plot_before_after(PHOTO, AFTER, title="T")
    assert not isinstance(titled(flat, "Patch norms").images[0].norm, LogNorm)


def test_norm_scale_reaches_the_threshold_even_without_outliers():
    figure = plot_before_after(PHOTO, AFTER, title="T", norm_threshold=8.0)
    assert titled(figure, "Patch norms").images[0].norm.vmax > 8.0
    assert "0 of 16 above 8" in texts(figure)


def test_notes_tell_outliers_and_where_the_attention_went():
    figure = plot_before_after(PHOTO, BEFORE, AFTER, title="The title", norm_threshold=50.0, caption="The caption.")
    text = texts(figure)
    for expected in (
        "The title", "The caption.", "before", "after", "1 of 16 above 50", "0 of 16 above 50", "threshold",
        "61.25 % on outlier patches", "3.12 % on the same patches\n58.00 % on the register", "L2 norm",
        "% of the attention",
    ):  # fmt: skip
        assert expected in text, expected


def test_attention_is_named_after_what_it_is():
    assert titled(plot_before_after(PHOTO, BEFORE, title="T"), "CLS attention, last block")
    received = dataclasses.replace(BEFORE, has_cls=False)
    assert titled(plot_before_after(PHOTO, received, title="T"), "Attention received, last block")


@pytest.mark.parametrize("activation", [torch.eye(4) * 7 - 2, torch.zeros(4, 4), -torch.eye(4)])
def test_neuron_scale_is_symmetric_about_zero(activation):
    before = dataclasses.replace(BEFORE, neuron_activation=activation)
    figure = plot_before_after(PHOTO, before, AFTER, title="T", neuron_name="17/884")
    scale = titled(figure, "Neuron 17/884").images[0].norm
    assert scale.vmin == -scale.vmax
    assert scale.vmax == (activation.abs().max() or 1.0)


def test_attention_of_zero_can_be_drawn(tmp_path):
    nothing = dataclasses.replace(BEFORE, attention=torch.zeros(4, 4))
    save_figure(plot_before_after(PHOTO, nothing, AFTER, title="T"), tmp_path / "zero.png")


def test_maps_of_different_grids_are_an_error():
    other = dataclasses.replace(AFTER, patch_norms=torch.ones(4, 5))
    with pytest.raises(ValueError, match=r"got grids \(4, 4\) and \(4, 5\)"):
        plot_before_after(PHOTO, BEFORE, other, title="T")


@pytest.mark.parametrize("with_after", [False, True])
def test_norms_per_block_draws_median_and_largest(with_after):
    after = ([4.0, 5.0, 5.0], [8.0, 9.0, 10.0]) if with_after else None
    figure = plot_norms_per_block(
        [4.0, 5.0, 6.0], [8.0, 400.0, 500.0], after=after, norm_threshold=50.0, detection_layer=-2, title="T"
    )
    (axes,) = figure.axes
    assert axes.get_yscale() == "log"
    assert len(axes.lines) == (4 if with_after else 2) + 1
    assert list(axes.lines[0].get_ydata()) == [8.0, 400.0, 500.0]
    (marked,) = axes.patches
    assert marked.get_x() < 1 < marked.get_x() + marked.get_width()
    assert "threshold 50" in texts(figure)
    assert ("after, median" in texts(figure)) == with_after


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_saved_figure_has_the_format_of_its_suffix(tmp_path, suffix):
    path = save_figure(plot_norms_per_block([1.0, 2.0], [3.0, 4.0], title="T"), tmp_path / f"norms{suffix}")
    assert path.read_bytes()[:4] in (b"\x89PNG", b"<?xm", b"%PDF")
    assert os.listdir(tmp_path) == [path.name]


def test_saved_figure_is_1200_pixels_wide_and_readable_as_other_files(tmp_path):
    path = save_figure(plot_before_after(PHOTO, BEFORE, AFTER, title="T"), tmp_path / "maps.png")
    with Image.open(path) as picture:
        assert picture.width == 1200
    plain = tmp_path / "plain"
    plain.touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


@pytest.mark.parametrize("interruption", [OSError("disk full"), KeyboardInterrupt()])
def test_interrupted_saving_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, interruption):
    path = tmp_path / "maps.png"
    path.write_bytes(b"old")

    def fail(self, file, **options):
        file.write(b"half")
        raise interruption

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(type(interruption)):
        save_figure(Figure(), path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == [path.name]


def test_unknown_format_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"got 'maps\.xyz'\. Formats are .*\.png"):
        save_figure(Figure(), tmp_path / "maps.xyz")
    assert os.listdir(tmp_path) == []
