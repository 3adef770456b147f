"""`ttreg visualize`, and the function that writes its pictures."""

import json

import pytest
import torch
from PIL import Image
from transformers import AutoModel

from ttreg_hf.images.decoder import to_pil
from ttreg_hf.images.photographs import load_photographs, photograph_paths
from ttreg_hf.images.pixel_values import to_pixel_values
from ttreg_hf.loading import load_processor
from ttreg_hf.pictures import visualization
from ttreg_hf.pictures.picture_files import picture_paths, write_before_after
from ttreg_hf.pictures.visualization import seen_photograph

from .conftest import SIZE, run, succeed, without_waiting

CAT, COFFEE = (next(path for path in photograph_paths() if path.stem == name) for name in ("cat", "coffee"))


@pytest.fixture
def drawn(monkeypatch):
    """What pictures were drawn of: arguments of `plot_before_after`."""
    calls = []
    plot = visualization.plot_before_after

    def record(*args, **options):
        calls.append((args, options))
        return plot(*args, **options)

    monkeypatch.setattr(visualization, "plot_before_after", record)
    return calls


def test_visualize_writes_one_picture_an_image_into_the_default_folder(checkpoint, tmp_path, monkeypatch, drawn):
    monkeypatch.chdir(tmp_path)
    out = succeed("visualize", checkpoint, CAT, COFFEE).out
    assert out == "wrote ttreg-pictures/cat.png\nwrote ttreg-pictures/coffee.png\n"
    for name in ("cat", "coffee"):
        with Image.open(f"ttreg-pictures/{name}.png") as picture:
            assert picture.width == 1200
    (_, before, after), options = drawn[0]
    assert before.register_attention is None  # its own test-time registers are off
    assert after.register_attention is not None
    assert before.patch_norms.max() > options["norm_threshold"] > after.patch_norms.max()
    assert str(checkpoint) in options["caption"]


def test_stock_model_is_drawn_with_neurons_of_a_calibration(base, calibration, tmp_path, drawn):
    arguments = ("visualize", base, CAT, "--calibration", calibration, "--neuron", "2/172", "--output", tmp_path)
    found = json.loads(succeed(*arguments, "--json").out)
    assert found["pictures"] == [str(tmp_path / "cat.png")]
    (_, before, after), options = drawn[0]
    assert options["neuron_name"] == "2/172"
    assert before.neuron_activation is not None
    assert before.patch_norms.max() > options["norm_threshold"] > after.patch_norms.max()


def test_stock_model_is_drawn_with_its_published_neurons(base, known, tmp_path, drawn):
    from ttreg_hf.known.known_checkpoint import Recipe

    known(register_neurons=((2, 7),), recipe=Recipe(norm_threshold=44.0, detection_layer=3))
    succeed("visualize", base, CAT, "--output", tmp_path)
    assert drawn[0][1]["norm_threshold"] == 44.0
    assert "1 register neuron (published" in drawn[0][1]["caption"]


def test_stock_model_without_known_neurons_is_drawn_as_it_is(base, tmp_path, drawn):
    out = succeed("visualize", base, CAT, "--output", tmp_path).out
    assert f"no register neurons of {base} are known" in out
    assert f"wrote {tmp_path / 'cat.png'}" in out
    (_, _, after), options = drawn[0]
    assert after is None
    assert options["caption"] == f"{base}, as it is"


def test_picture_that_exists_is_replaced_only_if_asked(checkpoint, tmp_path):
    (tmp_path / "cat.png").write_bytes(b"old")
    (tmp_path / "other.txt").touch()
    ended = run("visualize", checkpoint, CAT, "--output", tmp_path)
    assert (ended.code, without_waiting(ended.err).count("\n")) == (1, 1)
    assert "exists" in ended.err
    assert (tmp_path / "cat.png").read_bytes() == b"old"
    succeed("visualize", checkpoint, CAT, "--output", tmp_path, "--overwrite")
    assert (tmp_path / "cat.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "other.txt").exists()


def test_images_of_one_name_get_pictures_of_their_own():
    paths = [path.name for path in picture_paths(["a/cat.jpg", "b/cat.png", "dog.jpg"], "out")]
    assert paths == ["cat.png", "cat-2.png", "dog.png"]


def test_pil_images_are_numbered_and_drawn_without_a_patched_model(base, tmp_path, drawn):
    model, processor = AutoModel.from_pretrained(base).eval(), load_processor(str(base))
    paths = write_before_after(
        model, None, load_photographs()[:2], processor, tmp_path / "new" / "folder", detection_layer=-1
    )
    assert [path.name for path in paths] == ["image-1.png", "image-2.png"]
    assert all(path.is_file() for path in paths)
    assert drawn[0][0][2] is None


def test_photograph_is_what_the_model_saw(base):
    processor = load_processor(str(base))
    photo = seen_photograph(to_pixel_values(CAT, processor), processor)
    expected = processor(images=to_pil(CAT), return_tensors="pt", do_normalize=False)["pixel_values"][0]
    assert photo.shape == (SIZE, SIZE, 3)
    torch.testing.assert_close(torch.from_numpy(photo), expected.permute(1, 2, 0), atol=1e-5, rtol=0)
