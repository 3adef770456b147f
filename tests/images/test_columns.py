"""Columns in every form in which data sets keep images, whatever view of them is given: the same pixels, undecoded."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Array3D, Dataset, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image

from ttreg_hf.evaluation.examples import Columns, LabelledImages
from ttreg_hf.images.decoder import to_pil
from ttreg_hf.images.image_source import image_key, open_images

COUNT = 3
STREAMS = pytest.mark.parametrize("is_streaming", [False, True], ids=["map-style", "streaming"])


def photographs() -> list[Image.Image]:
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 256, (4, 6, 3), dtype=np.uint8)) for _ in range(COUNT)]


EXPECTED = [np.asarray(image).tolist() for image in photographs()]


def png(image: Image.Image) -> bytes:
    whole = io.BytesIO()
    image.save(whole, "PNG")
    return whole.getvalue()


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    found = [tmp_path / f"a photo {place}.png" for place in range(COUNT)]
    for path, image in zip(found, photographs(), strict=True):
        path.write_bytes(png(image))
    return found


def column(form: str, paths: list[Path]) -> Dataset:
    """A column `photo` beside another one that cannot be decoded."""
    images = photographs()
    cells = [{"bytes": png(image), "path": None} for image in images]
    forms: dict[str, tuple[list[Any], Any]] = {
        "images": (images, ImageFeature()),
        "undecoded images": (cells, ImageFeature(decode=False)),
        "bytes": ([png(image) for image in images], Value("binary")),
        "large bytes": ([png(image) for image in images], Value("large_binary")),
        "dicts": (cells, {"bytes": Value("binary"), "path": Value("string")}),
        "lists of images": ([[image, images[0]] for image in images], List(ImageFeature())),
        "paths": ([str(path) for path in paths], Value("string")),
        "file links": ([path.as_uri() for path in paths], Value("string")),
        "file links as images": ([path.as_uri() for path in paths], ImageFeature()),
        "arrays": ([np.asarray(image) for image in images], Array3D((4, 6, 3), "uint8")),
        "numbers": (EXPECTED, List(List(List(Value("int32"))))),
    }
    values, feature = forms[form]
    features = Features({"photo": feature, "mask": ImageFeature()})
    masks = [{"bytes": b"no image", "path": None}] * COUNT
    return Dataset.from_dict({"photo": values, "mask": masks}, features=features)


FORMS = (
    *("images", "undecoded images", "bytes", "large bytes", "dicts", "lists of images"),
    *("paths", "file links", "file links as images", "arrays", "numbers"),
)


def pixels(dataset: Any, **settings: Any) -> list[Any]:
    return [np.asarray(to_pil(raw)).tolist() for raw in open_images(dataset, **settings)]


@STREAMS
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_column_is_read(paths, form, is_streaming):
    table = column(form, paths)
    assert pixels(table.to_iterable_dataset() if is_streaming else table, image_column="photo") == EXPECTED


@STREAMS
@pytest.mark.parametrize("view", ["numpy", "torch", "arrow", "pandas"])
@pytest.mark.parametrize("form", ["images", "bytes", "arrays", "lists of images"])
def test_a_view_of_a_data_set_changes_nothing(paths, form, view, is_streaming):
    table = column(form, paths)
    viewed = (table.to_iterable_dataset() if is_streaming else table).with_format(view)
    assert pixels(viewed, image_column="photo") == EXPECTED


def test_a_view_of_other_columns_changes_nothing(paths):
    assert pixels(column("images", paths).with_format("torch", columns=["mask"]), image_column="photo") == EXPECTED


@STREAMS
@pytest.mark.parametrize("form", ["images", "lists of images", "bytes"])
def test_the_only_column_with_images_is_found(paths, form, is_streaming):
    table = column(form, paths).remove_columns("mask").add_column("label", list(range(COUNT)))
    assert pixels(table.to_iterable_dataset() if is_streaming else table) == EXPECTED


def test_images_come_before_bytes(paths):
    table = column("images", paths).remove_columns("mask").add_column("hash", [b"a", b"b", b"c"])
    assert pixels(table) == EXPECTED


@pytest.mark.parametrize("name", [None, "image"])
def test_what_a_transform_makes_is_read(paths, name):
    table = column("images", paths).remove_columns("mask")
    mirrored = table.with_transform(lambda rows: {"image": [np.asarray(image)[:, ::-1] for image in rows["photo"]]})
    found = [np.asarray(image)[:, ::-1].tolist() for image in open_images(mirrored, image_column=name)]
    assert found == EXPECTED


def test_tensors_that_a_transform_makes_are_read(paths):
    table = column("images", paths).remove_columns("mask")
    values = table.with_transform(lambda rows: {"pixel_values": [torch.ones(3, 2, 2) for _ in rows["photo"]]})
    assert all(torch.equal(image, torch.ones(3, 2, 2)) for image in open_images(values))


def test_a_transform_without_images_is_refused_with_what_to_do(paths):
    table = column("images", paths).remove_columns("mask").with_transform(lambda rows: {"x": rows["photo"]})
    with pytest.raises(ValueError, match=r"gives x, and no image or pixel_values\. .*`dataset\.with_format\(None\)`"):
        list(open_images(table))


def test_no_image_is_decoded_by_the_source(paths, monkeypatch):
    monkeypatch.setattr(ImageFeature, "decode_example", lambda *args, **options: pytest.fail("decoded"))
    for form in ("images", "lists of images", "file links as images"):
        for table in (column(form, paths), column(form, paths).with_format("torch")):
            assert len(list(open_images(table, image_column="photo"))) == COUNT
            assert len(list(open_images(table.to_iterable_dataset(), image_column="photo"))) == COUNT


def test_nothing_is_written_for_a_table(paths, tmp_path):
    column("lists of images", paths).save_to_disk(tmp_path / "saved")
    before = sorted((tmp_path / "saved").iterdir())
    assert pixels(Dataset.load_from_disk(tmp_path / "saved"), image_column="photo") == EXPECTED
    assert sorted((tmp_path / "saved").iterdir()) == before


def test_images_behind_links_are_named_by_them(paths):
    (first, *_) = open_images(column("file links", paths), image_column="photo")
    assert image_key(first, 0) == paths[0].as_uri()


@STREAMS
@pytest.mark.parametrize("view", [None, "numpy", "torch"])
def test_truths_are_read_from_every_view(is_streaming, view):
    features = Features({"image": ImageFeature(), "mask": ImageFeature(), "label": Value("int64")})
    masks = [Image.fromarray(np.full((4, 6), place, dtype=np.uint8)) for place in range(COUNT)]
    rows = {"image": photographs(), "mask": masks, "label": list(range(COUNT))}
    table = Dataset.from_dict(rows, features=features)
    viewed = (table.to_iterable_dataset() if is_streaming else table).with_format(view)
    images = LabelledImages(viewed, Columns(), ("mask", "label"))
    assert [np.asarray(to_pil(raw)).tolist() for raw in images.source()] == EXPECTED
    for place in range(COUNT):
        truth = images.truth(place)
        assert (truth.label, truth.mask.tolist()) == (place, [[place] * 6] * 4)


def test_truths_are_read_from_what_a_transform_makes():
    table = Dataset.from_dict({"photo": photographs()}, features=Features({"photo": ImageFeature()}))
    made = table.with_transform(lambda rows: {"image": rows["photo"], "label": [7] * len(rows["photo"])})
    images = LabelledImages(made, Columns(), ("label",))
    assert len(list(images.source())) == COUNT
    assert images.truth(1).label == 7
