"""The offline data set: masks, boxes and labels are exact, and no cut-out is in both splits."""

import datasets
import numpy as np
import pytest
from benchmarks.composites import build_composites, compose, find_cutouts
from PIL import Image, ImageDraw

from ttreg_hf.evaluation.labelled_sources import find_labelled
from ttreg_hf.images.data_source import DataSource

COLOURS = {"discs": (255, 0, 0), "squares": (0, 0, 255)}


@pytest.fixture(scope="module")
def cutouts(tmp_path_factory):
    """Three shapes a class, each of its own shade, and files that are no cut-outs."""
    folder = tmp_path_factory.mktemp("cutouts")
    for name, colour in COLOURS.items():
        (folder / name / "deeper").mkdir(parents=True)
        for place in range(3):
            image = Image.new("RGBA", (60, 50))
            draw = ImageDraw.Draw(image).ellipse if name == "discs" else ImageDraw.Draw(image).polygon
            corners = (10, 5, 45, 40) if name == "discs" else (10, 5, 45, 8, 30, 40)
            draw(corners, fill=(*(channel - 20 * place if channel else 0 for channel in colour), 255))
            image.save(folder / name / "deeper" / f"{place}.png")
    Image.new("RGB", (60, 50)).save(folder / "discs" / "photograph.png")
    Image.new("RGBA", (60, 50), (9, 9, 9, 255)).save(folder / "discs" / "opaque.png")
    Image.new("RGBA", (60, 50)).save(folder / "discs" / "empty.png")
    return folder


def test_only_what_is_cut_out_is_used(cutouts, tmp_path):
    assert {name: [path.name for path in paths] for name, paths in find_cutouts(cutouts).items()} == {
        name: ["0.png", "1.png", "2.png"] for name in COLOURS
    }
    with pytest.raises(FileNotFoundError, match="Cut-outs are PNG files with transparent surroundings"):
        find_cutouts(tmp_path)


def test_the_mask_is_where_the_thing_is(cutouts):
    background = Image.new("RGB", (80, 70), (0, 255, 0))
    with Image.open(cutouts / "discs" / "deeper" / "0.png") as cutout:
        made = [compose(background, cutout, size=64, random=np.random.default_rng(seed)) for seed in range(8)]
    for each in made:
        red = np.asarray(each.image)[..., 0] >= 128
        assert (red != each.mask).mean() < 0.002  # but for half-transparent pixels at the edge
        left, top, right, bottom = each.box
        inside = np.zeros_like(each.mask)
        inside[top:bottom, left:right] = True
        assert not (each.mask & ~inside).any()
        assert each.mask[top].any()
        assert each.mask[bottom - 1].any()
        assert each.mask[:, left].any()
        assert each.mask[:, right - 1].any()
        assert 0.25 * 64 <= max(right - left, bottom - top) <= 0.75 * 64
    assert len({each.box for each in made}) > 6


def shade_of(row):
    """Which of the three cut-outs of its class it is."""
    channel = np.asarray(row["image"])[..., 2 * row["label"]]
    return round((255 - float(np.median(channel[np.asarray(row["mask"]) > 0]))) / 20)


def test_a_set_holds_what_evaluation_reads(cutouts, tmp_path):
    green = [Image.new("RGB", (90, 90), (0, 255, 0))]
    build_composites(cutouts, tmp_path / "set", backgrounds=green, num_train=20, num_test=20, size=32, seed=1)
    shades = {}
    for split in ("train", "test"):
        data, source = find_labelled(str(tmp_path / "set"), split=split)
        assert source == DataSource(local=str(tmp_path / "set"), split=split)
        rows = list(data)
        assert [row["label"] for row in rows] == [0, 1] * 10
        assert data.features["label"].names == list(COLOURS)
        for row in rows:
            assert set(np.unique(np.asarray(row["mask"]))) == {0, row["label"] + 1}
        shades[split] = {(row["label"], shade_of(row)) for row in rows}
    assert not shades["train"] & shades["test"]  # no cut-out in both
    assert len(shades["train"] | shades["test"]) == 6
    again = build_composites(cutouts, tmp_path / "again", backgrounds=green, num_train=2, num_test=20, size=32, seed=1)
    assert again == {"discs": 3, "squares": 3}
    first, second = (list(find_labelled(str(tmp_path / name), split="test")[0]) for name in ("set", "again"))
    assert [row["boxes"] for row in first] == [row["boxes"] for row in second]
    with pytest.raises(FileExistsError):
        build_composites(cutouts, tmp_path / "set", backgrounds=green)


def test_a_folder_of_images_is_a_data_set_by_its_folders_and_metadata(cutouts, tmp_path):
    for split in ("train", "test"):
        for name in ("cats", "dogs"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / split / name / "0.png")
    data, _ = find_labelled(str(tmp_path), split="test")
    assert [row["label"] for row in data] == [0, 1]
    assert isinstance(data, datasets.IterableDataset)
    with pytest.raises(ValueError, match="`split` is one of"):
        find_labelled(str(tmp_path), split="nosuch")
    with pytest.raises(FileNotFoundError, match="is a data set with truths"):
        find_labelled(str(tmp_path / "test" / "cats" / "0.png"))
