"""Attention against masks, and the linear probe: by hand, and against libraries."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torchmetrics.classification import BinaryAveragePrecision, BinaryJaccardIndex, MulticlassJaccardIndex

from ttreg_hf.evaluation.scores import Tally
from ttreg_hf.evaluation.segmentation import attention_figures
from ttreg_hf.evaluation.segmentation_probe import SegmentationProbe, _Lesson, class_counts, pixels_by_patch
from ttreg_hf.images.processes import Processes


def test_attention_above_its_mean_is_foreground():
    attention = torch.tensor([[0.5, 0.1], [0.3, 0.1]])  # mean 0.25: the left column
    mask = np.array([[7, 0], [0, 7]])  # any class but 0 is foreground
    found = attention_figures(attention, mask)
    assert found.intersections == (1, 1)
    assert found.unions == (3, 3)
    assert found.pixels == 4
    # by value: 0.5 is right, 0.3 wrong, 0.1 twice, one right: precision 1 at recall 1/2, 2/4 at recall 1
    assert found.average_precision == pytest.approx(0.5 * 1 + 0.5 * 0.5)


def test_pixels_of_the_ignored_class_do_not_count():
    attention = torch.tensor([[0.5, 0.1], [0.3, 0.1]])
    found = attention_figures(attention, np.array([[7, 0], [255, 7]]), ignore_index=255)
    assert found.intersections == (1, 1)
    assert found.unions == (2, 2)
    assert found.pixels == 3
    assert attention_figures(attention, np.array([[0, 0], [255, 0]]), ignore_index=255) is None


def test_attention_figures_agree_with_libraries_on_resized_maps():
    random = np.random.default_rng(0)
    metric, precision, tally = BinaryJaccardIndex(), [], Tally()
    for place in range(4):
        attention, mask = torch.from_numpy(random.random((6, 5))), random.random((24, 25)) < 0.3
        found = attention_figures(attention, mask.astype(int))
        tally.add("mIoU", place, found.intersections, found.unions)
        resized = torch.nn.functional.interpolate(attention[None, None].float(), size=(24, 25), mode="bilinear")[0, 0]
        metric.update((resized > attention.mean().float()).int(), torch.from_numpy(mask).int())
        precision.append(BinaryAveragePrecision()(resized, torch.from_numpy(mask).int()))
        assert found.average_precision == pytest.approx(float(precision[-1]), abs=1e-5)
        assert found.average_precision == pytest.approx(average_precision_score(mask.ravel(), resized.ravel()))
    foreground = tally.scores(Processes())[0]
    assert foreground.numerators_BC.sum(0)[1] / foreground.denominators_BC.sum(0)[1] == pytest.approx(
        float(metric.compute())
    )


def test_pixels_are_counted_by_patch():
    mask = np.array([[0, 0, 2, 2], [0, 1, 2, 9]])
    counts = pixels_by_patch(mask, (1, 2), num_classes=3, ignore_index=9)
    assert counts.tolist() == [[[3, 0]], [[1, 0]], [[0, 3]]]


def test_cross_entropy_of_counts_is_that_of_the_pixels():
    random = torch.Generator().manual_seed(0)
    logits, mask = torch.randn(3, 2, 2, generator=random), torch.randint(0, 3, (8, 6), generator=random)
    counts = pixels_by_patch(mask.numpy(), (2, 2), 3, None)
    upsampled = torch.nn.functional.interpolate(logits[None], size=(8, 6), mode="nearest")
    expected = torch.nn.functional.cross_entropy(upsampled, mask[None], reduction="sum")
    assert torch.allclose(-(counts * logits.log_softmax(0)).sum(), expected, rtol=1e-5)


def test_miou_of_many_images_is_that_of_torchmetrics():
    random = np.random.default_rng(0)
    metric, tally = MulticlassJaccardIndex(5, average="macro", ignore_index=4), Tally()
    for place in range(3):
        predicted, mask = (torch.from_numpy(random.integers(0, top, (9, 7))) for top in (3, 5))
        tally.add("mIoU", place, *class_counts(predicted, mask, 5, 4))
        metric.update(predicted, mask)
    found = tally.scores(Processes())[0]
    assert found.denominators_BC[:, 4].sum() == 0  # what is ignored is no class
    assert found.value() == pytest.approx(float(metric.compute()))


def test_the_probe_learns_what_a_linear_layer_can():
    """Features are one-hot in the class behind different scales: batch norm and a linear layer solve it."""
    random = torch.Generator().manual_seed(0)
    lessons = []
    for place in range(6):
        mask = torch.randint(0, 3, (4, 4), generator=random)
        features = (
            torch.nn.functional.one_hot(mask, 3).permute(2, 0, 1) * torch.tensor([1e-2, 1.0, 50.0])[:, None, None]
        )
        lessons.append(_Lesson(place, features.half(), pixels_by_patch(mask.numpy(), (4, 4), 3, None)))
    task = SegmentationProbe(epochs=30, images_per_step=2, learning_rate=0.1)
    probe = task._learn(lessons, 3, Processes(), torch.device("cpu"))
    for lesson in lessons:
        predicted = task._logits(probe, lesson.features_Dhw.float()[None])[0].argmax(0)
        assert torch.equal(predicted, lesson.pixels_Chw.argmax(0))


def test_the_ignored_class_is_never_predicted():
    probe = torch.nn.Conv2d(2, 3, 1)
    torch.nn.init.constant_(probe.bias, 0.0)
    probe.bias.data[1] = 100.0
    features = torch.randn(1, 2, 3, 3)
    assert (SegmentationProbe(ignore_index=None)._logits(probe, features).argmax(1) == 1).all()
    assert (SegmentationProbe(ignore_index=1)._logits(probe, features).argmax(1) != 1).all()
