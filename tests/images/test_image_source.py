"""Images from every source, the same in the end; and what each wrong input is told."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict, Features, IterableDataset, Value
from datasets import Image as ImageFeature
from PIL import Image, UnidentifiedImageError
from torch.utils.data._utils.pin_memory import pin_memory
from transformers import BitImageProcessorPil

from ttreg_hf.images.bad_image import BadImage
from ttreg_hf.images.batches import ImageBatches
from ttreg_hf.images.decoder import to_pil
from ttreg_hf.images.decoding import collate
from ttreg_hf.images.image_source import open_images
from ttreg_hf.images.pixel_values import to_pixel_values

CPU = torch.device("cpu")


def photograph(seed: int = 0, *, width: int = 6, height: int = 4) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def scale(images: Image.Image, return_tensors: str) -> dict[str, torch.Tensor]:
    """A processor that only divides by 255."""
    array = np.asarray(images)
    assert images.mode == "RGB"
    assert array.ndim == 3
    return {"pixel_values": torch.from_numpy(array.copy()).permute(2, 0, 1)[None] / 255}


def pixels(image: Any) -> list[Any]:
    return np.asarray(to_pil(image)).tolist()


def batches_of(
    images: Any, *, num_images: int = 100, batch_size: int = 2, processor: Any = scale, **open_settings: Any
) -> ImageBatches:
    source = open_images(images, **open_settings)
    return ImageBatches(source, processor, num_images=num_images, batch_size=batch_size, device=CPU)


def numbers(count: int) -> list[torch.Tensor]:
    """Images that tell their place."""
    return [torch.full((3, 2, 2), float(place)) for place in range(count)]


def places(batches: Any) -> list[list[int]]:
    return [[int(image[0, 0, 0]) for image in batch.pixel_values] for batch in batches]


def features() -> Features:
    return Features({"label": Value("int64"), "picture": ImageFeature()})


def dataset(count: int = 3) -> Dataset:
    rows = {"label": list(range(count)), "picture": [photograph(seed) for seed in range(count)]}
    return Dataset.from_dict(rows, features=features())


EXPECTED = torch.stack([scale(photograph(seed), "pt")["pixel_values"][0] for seed in range(3)])


def _folder(path: Path) -> Path:
    """Three pictures by path: `a.PNG`, `b/c.bmp`, `b/d/e.png`, and files that are no pictures."""
    (path / "b" / "d").mkdir(parents=True)
    for seed, name in enumerate(("a.PNG", "b/c.bmp", "b/d/e.png")):
        photograph(seed).save(path / name)
    (path / "notes.txt").write_text("not an image")
    (path / "b" / "labels.json").write_text("{}")
    return path


def _sources(path: Path) -> dict[str, Any]:
    photographs = [photograph(seed) for seed in range(3)]
    folder = _folder(path / "folder")
    return {
        "folder": folder,
        "folder by name": str(folder),
        "paths": [folder / "a.PNG", folder / "b/c.bmp", folder / "b/d/e.png"],
        "path names": [str(folder / "a.PNG"), str(folder / "b/c.bmp"), str(folder / "b/d/e.png")],
        "PIL": photographs,
        "arrays HWC": [np.asarray(image) for image in photographs],
        "arrays CHW": [np.asarray(image).transpose(2, 0, 1) for image in photographs],
        "array NHWC": np.stack([np.asarray(image) for image in photographs]),
        "uint8 tensors": [torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in photographs],
        "float tensors": list(EXPECTED),
        "4-D tensor": EXPECTED,
        "generator": (image for image in photographs),
        "dataset": dataset(),
        "streaming dataset": dataset().to_iterable_dataset(),
    }


SOURCES = [
    "folder",
    "folder by name",
    "paths",
    "path names",
    "PIL",
    "arrays HWC",
    "arrays CHW",
    "array NHWC",
    "uint8 tensors",
    "float tensors",
    "4-D tensor",
    "generator",
    "dataset",
    "streaming dataset",
]


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_gives_the_same_pixels_twice(tmp_path, name):
    batches = batches_of(_sources(tmp_path)[name])
    for _ in range(2):
        found = list(batches)
        assert [len(batch) for batch in found] == [2, 1]
        torch.testing.assert_close(torch.cat([batch.pixel_values for batch in found]), EXPECTED)


def test_a_single_file_is_a_folder_of_one(tmp_path):
    photograph(1).save(tmp_path / "one.png")
    (batch,) = batches_of(tmp_path / "one.png")
    torch.testing.assert_close(batch.pixel_values, EXPECTED[1:2])


def test_float_tensors_need_no_processor_and_are_taken_as_they_are():
    (batch,) = batches_of(numbers(2), processor=None)
    assert torch.equal(batch.pixel_values, torch.stack(numbers(2)))


@pytest.mark.parametrize("is_streaming", [False, True], ids=["map-style", "streaming"])
def test_the_image_column_of_a_dataset_is_found_or_named(is_streaming):
    rows = {"left": [photograph(0)], "right": [photograph(1)]}
    two = Dataset.from_dict(rows, features=Features({"left": ImageFeature(), "right": ImageFeature()}))
    two = two.to_iterable_dataset() if is_streaming else two
    with pytest.raises(ValueError, match=r"needs one image column, got left, right; its columns are left, right\. Na"):
        open_images(two)
    (batch,) = batches_of(two, image_column="right")
    torch.testing.assert_close(batch.pixel_values, EXPECTED[1:2])
    with pytest.raises(ValueError, match=r"`image_column` is a column of the data set, got 'up'. It has left, right"):
        open_images(two, image_column="up")


def test_a_dataset_without_images_is_refused_with_its_columns():
    with pytest.raises(ValueError, match=r"needs one image column, got none; its columns are label, text\. Name it"):
        open_images(Dataset.from_dict({"label": [1], "text": ["a"]}))


def test_a_column_called_image_serves_where_features_do_not_tell():
    rows = {"image": [np.asarray(photograph(0)).tolist()], "label": [1]}
    assert len(list(open_images(Dataset.from_dict(rows)))) == 1


def test_a_stream_that_does_not_know_its_columns_takes_the_one_that_is_named():
    stream = IterableDataset.from_generator(_examples)
    with pytest.raises(ValueError, match="needs one image column, got none; its columns are not named"):
        open_images(stream)
    (batch,) = batches_of(stream, image_column="picture")
    torch.testing.assert_close(batch.pixel_values, EXPECTED[:1])


def _examples() -> Iterator[dict[str, Any]]:
    yield {"picture": photograph(0)}


def test_a_dataset_dict_is_refused_and_its_splits_are_named():
    with pytest.raises((TypeError, ValueError), match="train"):
        open_images(DatasetDict({"train": dataset(1)}))


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "CMYK", "P", "1", "HSV", "YCbCr"])
def test_every_mode_becomes_rgb_as_pillow_converts_it(mode):
    image = photograph().convert(mode)
    assert to_pil(image).mode == "RGB"
    assert pixels(image) == np.asarray(image.convert("RGB")).tolist()


def test_a_grey_image_has_three_equal_channels():
    assert pixels(Image.new("L", (1, 1), 77)) == [[[77, 77, 77]]]


def test_a_palette_with_transparency_gives_no_warning():
    """Warnings are errors here; Pillow gives one when such an image is made RGB directly."""
    image = photograph().quantize(4)
    image.info["transparency"] = b"\x00\xff\xff\xff"
    assert to_pil(image).mode == "RGB"


def test_16_bit_images_keep_their_grey_values():
    """0 to 65535 becomes 0 to 255; Pillow's own conversion clips nearly all of it to white."""
    array = np.array([[0, 0x1000, 0x8000, 0xFFFF]], dtype=np.uint16)
    found = np.asarray(to_pil(Image.fromarray(array)))[0, :, 0]
    assert np.abs(found.astype(int) - [0, 16, 128, 255]).max() <= 1


def test_photographs_are_turned_as_exif_says(tmp_path):
    image = photograph(width=6, height=4)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 270 degrees to see it upright
    image.save(tmp_path / "turned.png", exif=exif)
    expected = np.rot90(np.asarray(image), k=-1).tolist()
    assert pixels(tmp_path / "turned.png") == expected
    with Image.open(tmp_path / "turned.png") as opened:
        assert pixels(opened) == expected


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"names a folder or an image file, but .*/none does not exist"):
        open_images(tmp_path / "none")


def test_a_folder_without_images_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("not an image")
    with pytest.raises(
        FileNotFoundError, match=r"The folder .* holds no image, but 1 \.txt\. Give a folder with image"
    ):
        open_images(tmp_path)


def test_a_broken_file_is_named(tmp_path):
    (tmp_path / "broken.png").write_text("not an image")
    with pytest.raises(UnidentifiedImageError, match=r"broken\.png is not an image that Pillow can read. Remove it"):
        to_pil(tmp_path / "broken.png")


def test_a_truncated_file_is_named(tmp_path):
    whole = io.BytesIO()
    photograph(width=64, height=64).save(whole, "PNG")
    (tmp_path / "half.png").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    with pytest.raises(OSError, match=r"half\.png cannot be read to its end \(.*\)\. Remove it, or get it again"):
        to_pil(tmp_path / "half.png")


@pytest.mark.parametrize("images", [3, None, photograph()], ids=["number", "None", "one PIL image"])
def test_something_else_than_images_is_refused(images):
    with pytest.raises(TypeError, match=rf"`images` is a folder, .* got {type(images).__name__}. Give for example"):
        open_images(images)


@pytest.mark.parametrize(
    ("image", "got"),
    [
        ({"image": 1}, "image 0 is dict"),
        ((photograph(), 3), "image 0 is tuple"),
        (np.zeros((4, 4, 3)), r"image 0 is an array of float64 with shape \(4, 4, 3\)"),
        (np.zeros((4, 4), dtype=np.uint8), r"image 0 is an array of uint8 with shape \(4, 4\)"),
        (torch.zeros(4, 4, 4, dtype=torch.uint8), r"image 0 is an array of uint8 with shape \(4, 4, 4\)"),
    ],
)
def test_something_else_than_an_image_is_refused(image, got):
    with pytest.raises(TypeError, match=rf"Images are PIL images, uint8 arrays .*; {got}\. Convert it first"):
        list(batches_of([image]))


@pytest.mark.parametrize("shape", [(4, 4, 3), (1, 4, 4), (4, 4), (1, 3, 4, 4)])
def test_float_tensors_of_another_shape_are_refused(shape):
    with pytest.raises(TypeError, match=r"has shape \(3, H, W\), got \(") as caught:
        to_pixel_values(torch.zeros(shape), None)
    assert str(shape) in str(caught.value)


def test_pil_images_without_a_processor_are_refused():
    with pytest.raises(ValueError, match=r"need an image processor, and none was found .* Pass `processor=`"):
        list(batches_of([photograph()], processor=None))


def test_images_of_one_size_go_together():
    """In the order of the first of each size; the last of them tells what has been seen."""
    sizes = [2, 4, 2, 2, 4, 6]
    images = [torch.full((3, size, size), float(place)) for place, size in enumerate(sizes)]
    batches = batches_of(images, batch_size=4)
    assert places(batches) == [[0, 2, 3], [1], [4], [5]]
    assert places(batches.first(3)) == [[0, 2], [1]]
    assert [batch.seen_before for batch in batches] == [None, 4, None, 6]


def test_unreadable_images_count_as_seen(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"not an image")
    batches = batches_of([*numbers(2), tmp_path / "broken.png"], batch_size=3)
    assert [(batch.places, batch.seen_before) for batch in batches] == [((0, 1), 3)]


def test_a_data_loader_pins_images_of_every_size(monkeypatch):
    """What it does for a GPU, which need not be there for this."""
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tuple(tensor.shape)) or tensor)
    collated = pin_memory(collate([(0, torch.zeros(3, 2, 2)), (1, torch.zeros(3, 4, 4)), (2, BadImage("a", "b"))]))
    assert pinned == [(1, 3, 2, 2), (1, 3, 4, 4)]
    assert [batch.places for batch in collated.by_size] == [(0,), (1,)]
    assert collated.bad_images == [(2, BadImage("a", "b"))]


@pytest.mark.parametrize(("num_images", "expected"), [(1, [[0]]), (4, [[0, 1, 2], [3]]), (99, [[0, 1, 2], [3, 4]])])
def test_the_first_images_are_used_in_order(num_images, expected):
    assert places(batches_of(numbers(5), num_images=num_images, batch_size=3)) == expected


def test_a_generator_is_read_no_further_than_needed_and_gone_through_twice():
    read = []

    def images() -> Iterator[torch.Tensor]:
        for place, image in enumerate(numbers(9)):
            read.append(place)
            yield image

    batches = batches_of(images(), num_images=4, batch_size=3)
    assert places(batches) == places(batches) == [[0, 1, 2], [3]]
    assert read == [0, 1, 2, 3]


def test_two_passes_over_a_generator_at_once_see_the_same_images():
    source = open_images(iter(numbers(3)))
    pairs = [(int(one[0, 0, 0]), int(other[0, 0, 0])) for one, other in zip(source, source, strict=True)]
    assert pairs == [(0, 0), (1, 1), (2, 2)]


def test_where_keeps_places_of_the_source_and_fills_batches():
    batches = batches_of(numbers(10), num_images=8, batch_size=2)
    assert places(batches.where(lambda place: place % 3 == 0)) == [[0, 3], [6]]
    assert places(batches) == [[0, 1], [2, 3], [4, 5], [6, 7]]  # the original is as it was


def test_first_takes_exactly_so_many():
    batches = batches_of(numbers(7), batch_size=3)
    assert places(batches.first(4)) == [[0, 1, 2], [3]]
    assert places(batches.first(3)) == [[0, 1, 2]]
    assert places(batches.where(lambda place: place > 2).first(99)) == [[3, 4, 5], [6]]


def test_the_count_is_exact_where_it_can_be_known():
    """A list has a length; a stream is gone through, as far as a few images."""
    assert batches_of(numbers(3)).expected_count() == 3
    assert batches_of(numbers(30), num_images=8).expected_count() == 8
    assert batches_of(iter(numbers(100)), num_images=500).expected_count() == 100
    assert batches_of(iter(numbers(140)), num_images=500).expected_count() == 500
    assert batches_of(iter(())).expected_count() == 0


def test_another_size_is_the_processors_own_in_proportion():
    photographs = [Image.effect_noise((300, 260), 90).convert("RGB") for _ in range(2)]
    given = {"resample": 3, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    small = BitImageProcessorPil(size={"shortest_edge": 64}, crop_size={"height": 56, "width": 56}, **given)
    large = BitImageProcessorPil(size={"shortest_edge": 128}, crop_size={"height": 112, "width": 112}, **given)
    batches = batches_of(photographs, processor=small)
    found = [batch.pixel_values for batch in batches.at_size((112, 112), (56, 56))]
    expected = large(images=photographs, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(torch.cat(found), expected)
    assert next(iter(batches)).pixel_values.shape[-2:] == (56, 56)  # the original is as it was


def test_float_tensors_are_interpolated_to_another_size():
    batches = batches_of([torch.full((3, 28, 28), 2.0), torch.rand(3, 28, 28)])
    (batch,) = batches.at_size((56, 42), (28, 28))
    assert batch.pixel_values.shape == (2, 3, 56, 42)
    torch.testing.assert_close(batch.pixel_values[0], torch.full((3, 56, 42), 2.0))
