"""Masks, boxes and labels in the forms in which people keep them, and which image they belong to."""

import io

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BitImageProcessorPil

from ttreg_hf.calibration.calibration_run import silent
from ttreg_hf.evaluation.examples import Columns, LabelledBatches, LabelledImages
from ttreg_hf.evaluation.ground_truth import read_boxes, read_mask, size_of
from ttreg_hf.images.batches import ImageBatches
from ttreg_hf.images.processes import Processes

SIZES = [(40, 30), (20, 50), (33, 33), (60, 20), (24, 36)]


def picture(place, *, orientation=None):
    """A PNG whose red channel says its place."""
    image, whole = Image.new("RGB", SIZES[place], (10 * place, 0, 0)), io.BytesIO()
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    image.save(whole, "PNG", exif=exif)
    return {"bytes": whole.getvalue(), "path": None}


def table():
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "annotation": datasets.Image(),
            "objects": {"bbox": datasets.List(datasets.List(datasets.Value("float32")))},
            "label": datasets.ClassLabel(names=["cat", "dog"]),
            "other": datasets.Image(),
        }
    )
    rows = [
        {
            "image": picture(place),
            "annotation": Image.fromarray(np.full(SIZES[place][::-1], place, dtype=np.uint8)),
            "objects": {"bbox": [[1.0, 2.0, 11.0, 12.0 + place]]},
            "label": place % 2,
            "other": picture(0),
        }
        for place in range(5)
    ]
    return datasets.Dataset.from_list(rows, features=features)


def go_through(data, *, rank=0, world=1, workers=0, batch_size=2):
    """What one process sees: red of the first pixel, and the truth."""
    images = LabelledImages(data, Columns(), ("mask", "boxes", "label"))
    processor = BitImageProcessorPil(size={"height": 8, "width": 8}, do_center_crop=False, do_normalize=False)
    batches = ImageBatches(
        images.source(Processes(rank, world)),
        processor,
        num_images=5,
        batch_size=batch_size,
        device=torch.device("cpu"),
        processes=Processes(rank, world),
        workers=workers,
    )
    for batch, truths in LabelledBatches(images, batches, silent, "test"):
        for pixel_values, truth in zip(batch.pixel_values, truths, strict=True):
            yield round(float(pixel_values[0, 0, 0]) * 255), truth


@pytest.mark.parametrize("streaming", [False, True], ids=["table", "stream"])
@pytest.mark.parametrize(("rank", "world", "workers"), [(0, 1, 0), (1, 2, 0), (0, 1, 2)])
def test_every_image_comes_with_its_own_truth(streaming, rank, world, workers):
    data = table().to_iterable_dataset() if streaming else table()
    seen = list(go_through(data, rank=rank, world=world, workers=workers))
    assert [truth.place for _, truth in seen] == list(range(rank, 5, world))
    for red, truth in seen:
        width, height = SIZES[truth.place]
        assert red == 10 * truth.place
        assert truth.mask.shape == (height, width)
        assert (truth.mask == truth.place).all()
        assert truth.boxes == pytest.approx(
            np.array([[1 / width, 2 / height, 11 / width, (12 + truth.place) / height]])
        )
        assert truth.label == truth.place % 2


@pytest.mark.parametrize("streaming", [False, True], ids=["table", "stream"])
def test_truths_of_other_processes_are_not_kept_and_own_ones_come_in_any_order(streaming):
    images = LabelledImages(table().to_iterable_dataset() if streaming else table(), Columns(), ("label",))
    assert len(list(images.source(Processes(1, 2)))) == 5
    assert sorted(images._examples) == [1, 3]
    assert [images.truth(place).label for place in (3, 1)] == [1, 1]
    assert not images._examples


def test_class_names_are_the_data_sets():
    assert LabelledImages(table(), Columns(), ("label",)).class_names() == ("cat", "dog")
    assert LabelledImages([{"image": 0, "label": 1}], Columns(), ("label",)).class_names() is None


@pytest.mark.parametrize(
    ("box_format", "box"),
    # columns 2 to 4 and rows 1 to 4 of an image of 10 x 20, counted from 0
    [("xyxy", [2, 1, 5, 5]), ("xywh", [2, 1, 3, 4]), ("voc", [3, 2, 5, 5])],
)
def test_the_same_box_in_three_formats(box_format, box):
    assert read_boxes([box], (10, 20), box_format) == pytest.approx(np.array([[0.2, 0.05, 0.5, 0.25]]))


def test_images_without_boxes_have_none():
    assert read_boxes([], (10, 20), "xyxy").shape == (0, 4)


@pytest.mark.parametrize("box", [[5, 5, 2, 9], [1, 2, 3]])
def test_boxes_of_another_form_are_refused(box):
    with pytest.raises(ValueError, match=r"A box (has a width|is four numbers)"):
        read_boxes([box], (10, 20), "xyxy")


def test_masks_of_every_mode_give_their_classes():
    classes = np.array([[0, 3], [255, 1]], dtype=np.uint8)
    palette = Image.fromarray(classes, "L").convert("P")
    palette.putdata(classes.ravel().tolist())
    wide = Image.fromarray(classes.astype(np.uint16) * 100)
    colours = np.stack([classes, np.array([[0, 0], [0, 3]], dtype=np.uint8), np.zeros_like(classes)], axis=2)
    whole = io.BytesIO()
    Image.fromarray(classes).save(whole, "PNG")
    assert read_mask(classes).tolist() == classes.tolist()
    assert read_mask(Image.fromarray(classes)).tolist() == classes.tolist()
    assert read_mask(palette).tolist() == classes.tolist()
    assert read_mask(wide).tolist() == (classes.astype(int) * 100).tolist()
    assert read_mask(Image.fromarray(colours)).tolist() == [[0, 3], [255, 1 + 3 * 256]]  # as ImageNet-S
    assert read_mask({"bytes": whole.getvalue(), "path": None}).tolist() == classes.tolist()
    assert read_mask(Image.fromarray(classes > 0).convert("1")).tolist() == [[0, 1], [1, 1]]
    with pytest.raises(ValueError, match=r"got float64 of shape \(2, 2\)"):
        read_mask(np.zeros((2, 2)))


def test_sizes_are_of_upright_images():
    assert size_of(picture(0)) == (40, 30)
    assert size_of(picture(0, orientation=6)) == (30, 40)
    assert size_of(torch.zeros(3, 30, 40)) == (40, 30)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (datasets.DatasetDict({"a": table()}), TypeError, "one split of a data set, got all of them: a"),
        ("folder", TypeError, "a `datasets` dataset or a sequence of dicts with an image and its truth, got str"),
        ([{"image": 0}], ValueError, r"each image's mask, got none of mask, annotation, segmentation among image"),
    ],
)
def test_what_is_no_data_set_with_truths_is_refused(data, error, message):
    with pytest.raises(error, match=message):
        LabelledImages(data, Columns(), ("mask",))


def test_a_named_column_must_be_there():
    with pytest.raises(
        ValueError, match=r"got 'gt' among image, .*objects\.bbox.* `Columns\(mask=\.\.\.\)` \(`--mask-col"
    ):
        LabelledImages(table(), Columns(mask="gt"), ("mask",))
    with pytest.raises(ValueError, match="`box_format` is one of xyxy, xywh, voc, got 'yolo'"):
        Columns(box_format="yolo")


def test_a_broken_truth_names_its_image():
    images = LabelledImages([{"image": torch.zeros(3, 8, 8), "mask": np.zeros((2, 2))}], Columns(), ("mask",))
    images.source()[0]
    with pytest.raises(ValueError, match="Image 0 of the data set: A mask holds the class of every pixel"):
        images.truth(0)
