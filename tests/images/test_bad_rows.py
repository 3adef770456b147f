"""One bad row never ends a run: it is left out, counted, named, and bounded."""

import io
import zlib
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from datasets import Dataset, Features, List
from datasets import Image as ImageFeature
from PIL import Image, ImageOps

from ttreg_hf.evaluation.examples import Columns, LabelledBatches, LabelledImages
from ttreg_hf.images.batches import ImageBatches
from ttreg_hf.images.decoder import MOST_ELONGATED, to_pil
from ttreg_hf.images.image_source import open_images
from ttreg_hf.images.progress import silent

CPU = torch.device("cpu")


def picture(width: int = 6, height: int = 4) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def png(image: Image.Image | None = None, **settings: Any) -> bytes:
    whole = io.BytesIO()
    (image or picture()).save(whole, "PNG", **settings)
    return whole.getvalue()


def png_of_size(width: int, height: int) -> bytes:
    """A file whose header tells of so many pixels."""
    data = bytearray(png())
    header = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes(data[24:29])
    data[12:33] = header + zlib.crc32(header).to_bytes(4, "big")
    return bytes(data)


def processor(images: Image.Image, return_tensors: str) -> dict[str, torch.Tensor]:
    assert max(images.size) <= MOST_ELONGATED * min(images.size)
    return {"pixel_values": torch.zeros(1, 3, 2, 2)}


def batches(images: Any, *, max_bad_share: float = 0.9, **settings: Any) -> ImageBatches:
    given = {"num_images": 10, "batch_size": 2, "device": CPU, **settings}
    return ImageBatches(open_images(images), processor, max_bad_share=max_bad_share, **given)


def bad(images: Any, **settings: Any) -> dict[int, str]:
    """Place and reason of what is left out."""
    found = batches(images, **settings)
    for _ in found:
        pass
    return {place: image.reason for place, image in found.bad_images.items()}


BAD = {
    "None": (None, "is missing"),
    "nothing in a cell": ({"bytes": None, "path": None}, "is missing"),
    "an empty path": ({"bytes": None, "path": ""}, "is missing"),
    "an empty link": ("", "is missing"),
    "no bytes": ({"bytes": b"", "path": None}, "is not an image that Pillow can read"),
    "an array without rows": (np.zeros((0, 4, 3), dtype=np.uint8), "is missing"),
    "an array without columns": (np.zeros((4, 0, 3), dtype=np.uint8), "is missing"),
    "a tensor without pixels": (torch.zeros(3, 0, 0), "has no pixels"),
    "NaN": (torch.full((3, 2, 2), float("nan")), "values that are not finite"),
    "infinity": (torch.tensor([1.0, float("inf")]).expand(3, 2, 2), "values that are not finite"),
    "numbers that are no bytes": (np.full((4, 4, 3), 256), "has values outside 0 to 255"),
    "400 million pixels": (png_of_size(20_000, 20_000), "is too large (Image size (400000000 pixels)"),
    "a strip": (Image.new("RGB", (50_000, 2)), "has 50000 x 2 pixels; one side may be 50 times as long"),
    "an upright strip": (png(Image.new("RGB", (2, 5_000))), "has 2 x 5000 pixels"),
    "a link to nothing": ("file:///no/such.png", "FileNotFoundError"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_row_is_left_out_counted_and_named(what):
    row, reason = BAD[what]
    found = bad([picture(), row, picture()])
    assert list(found) == [1]
    assert reason in found[1]


@pytest.mark.parametrize("what", ["None", "NaN", "a strip", "400 million pixels"])
def test_bad_rows_are_bounded(what):
    row, _ = BAD[what]
    with pytest.raises(ValueError, match=r"At most 1 of 10 images may be unreadable, got 2: image 1 \(OSError"):
        bad([picture(), row, row], max_bad_share=0.1, batch_size=3)


def test_a_large_picture_is_not_said_to_be_of_another_format():
    with pytest.raises(OSError, match="is too large") as caught:
        to_pil(png_of_size(20_000, 20_000))
    assert "PNG" not in str(caught.value)


def test_a_panorama_is_read():
    assert to_pil(png(picture(width=4 * MOST_ELONGATED, height=4))).size == (4 * MOST_ELONGATED, 4)


EXIF_FAILURES = [SyntaxError, KeyError, TypeError, AttributeError, ZeroDivisionError, OverflowError, IndexError]


@pytest.mark.parametrize("failure", [*EXIF_FAILURES, RuntimeError, UnicodeDecodeError, NotImplementedError])
@pytest.mark.parametrize("as_file", [True, False], ids=["bytes", "PIL"])
def test_whatever_exif_handling_raises_is_a_bad_row(monkeypatch, failure, as_file):
    def transpose(image: Image.Image) -> Image.Image:
        if image.size == (7, 7):
            raise failure(*(("utf-8", b"", 0, 1, "") if failure is UnicodeDecodeError else ("broken",)))
        return image

    monkeypatch.setattr(ImageOps, "exif_transpose", transpose)
    row = picture(7, 7)
    found = bad([picture(), png(row) if as_file else row])
    assert list(found) == [1]
    assert "cannot be read to its end" in found[1]


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow warns of some of the damage
def test_exif_data_that_pillow_cannot_parse_is_at_most_a_bad_row():
    random = np.random.default_rng(0)
    header = b"Exif\x00\x00MM\x00*\x00\x00\x00\x08"
    for _ in range(200):
        exif = header + bytes(random.integers(0, 256, int(random.integers(0, 40)), dtype=np.uint8))
        try:
            assert to_pil(png(exif=exif)).mode == "RGB"
        except OSError as error:
            assert "Remove it" in str(error)  # noqa: PT017  # either outcome is right


def test_an_image_that_its_processor_refuses_is_a_bad_row():
    def refuse(images: Image.Image, return_tensors: str) -> dict[str, torch.Tensor]:
        if images.width == 1:
            raise ValueError("too small")
        return processor(images, return_tensors)

    found = ImageBatches(
        [picture(), picture(width=1)], refuse, num_images=9, batch_size=2, device=CPU, max_bad_share=0.5
    )
    assert [batch.places for batch in found] == [(0,)]
    assert found.bad_images[1].reason == "OSError: image 1 (1 x 4 pixels) is refused by the image processor: too small"


def cells(form: str) -> tuple[Dataset, list[int]]:
    """A column in which rows 1 and later hold no image, and which rows these are."""
    good = {"bytes": png(), "path": None}
    columns: dict[str, tuple[list[Any], Any]] = {
        "images": ([good, None, {"bytes": None, "path": ""}], ImageFeature()),
        "lists": ([[good], None, [], [None]], List(ImageFeature())),
        "bytes": ([png(), None, b""], datasets.Value("binary")),
        "dicts": ([good, None, {"bytes": None, "path": None}], None),
        "numbers": ([np.asarray(picture()).tolist(), None, []], None),
    }
    rows, feature = columns[form]
    table = Dataset.from_dict({"image": rows}, features=None if feature is None else Features({"image": feature}))
    return table, list(range(1, len(rows)))


@pytest.mark.parametrize("is_streaming", [False, True], ids=["map-style", "streaming"])
@pytest.mark.parametrize("form", ["images", "lists", "bytes", "dicts", "numbers"])
def test_null_cells_of_every_kind_of_column_are_bad_rows(form, is_streaming):
    table, expected = cells(form)
    assert list(bad(table.to_iterable_dataset() if is_streaming else table)) == expected


def test_a_row_whose_transform_fails_is_a_bad_row():
    table, _ = cells("images")
    transformed = table.with_transform(lambda rows: {"image": [image.convert("RGB") for image in rows["image"]]})
    found = bad(transformed)
    assert list(found) == [1, 2]
    assert "convert" in found[1]


def test_a_stream_that_decodes_by_itself_names_the_way_out():
    rows = {"image": [{"bytes": png(), "path": None}, {"bytes": b"not an image", "path": None}]}
    table = Dataset.from_dict(rows, features=Features({"image": ImageFeature()}))
    mapped = table.to_iterable_dataset().map(lambda row: row)
    with pytest.raises(
        ValueError, match=r"ends there\. Before that, .*`dataset\.cast_column\('image', datasets\.Image\("
    ):
        list(open_images(mapped, image_column="image"))
    undecoded = table.to_iterable_dataset().cast_column("image", ImageFeature(decode=False)).map(lambda row: row)
    assert list(bad(open_images(undecoded, image_column="image"))) == [1]


TRUTHS = {
    "mask": (np.zeros((4, 6), dtype=np.uint8), [None, np.zeros((2, 2)), {"bytes": b"broken", "path": None}]),
    "boxes": ([[0, 0, 2, 2]], [None, [[1, 2, 3]], [[3, 3, 1, 1]]]),
    "label": (1, [None, "cat"]),
}


@pytest.mark.parametrize("truth", TRUTHS)
def test_a_broken_truth_is_a_bad_row(truth):
    good, broken = TRUTHS[truth]
    data = [{"image": picture(), truth: value} for value in (good, *broken, good)]
    images = LabelledImages(data, Columns(), (truth,))
    found = batches(images.source(), batch_size=2)
    places = [[known.place for known in truths] for _, truths in LabelledBatches(images, found, silent, "test")]
    assert places == [[0], [len(broken) + 1]]
    assert list(found.bad_images) == list(range(1, len(broken) + 1))
    assert all(bad.reason.startswith(f"ValueError: Image {place} of") for place, bad in found.bad_images.items())


def test_broken_truths_are_bounded():
    images = LabelledImages([{"image": picture(), "label": None}] * 4, Columns(), ("label",))
    found = batches(images.source(), max_bad_share=0.1)
    with pytest.raises(ValueError, match="At most 1 of 10 images may be unreadable, got 2"):
        list(LabelledBatches(images, found, silent, "test"))


@pytest.mark.parametrize("error", [ConnectionError("offline"), PermissionError(13, "closed"), RuntimeError("gone")])
def test_what_a_source_itself_raises_is_no_bad_row(error):
    def rows() -> Any:
        yield {"image": None}
        raise error

    stream = datasets.IterableDataset.from_generator(rows)
    with pytest.raises(type(error)) as caught:
        list(open_images(stream, image_column="image"))
    assert caught.value is error or str(caught.value) == str(error)
