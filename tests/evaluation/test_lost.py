"""LOST on features whose object is known, and overlaps worked out by hand."""

import numpy as np
import pytest
import torch

from ttreg_hf.evaluation.lost import discover_object, largest_overlap


def features(*, objects, background=(1.0, 0.0), thing=(-1.0, 0.2), grid=(4, 5)):
    """`(h, w, 2)`: `thing` in the rectangles (top, left, bottom, right), `background` elsewhere."""
    found = torch.tensor(background).expand(*grid, 2).clone()
    for top, left, bottom, right in objects:
        found[top:bottom, left:right] = torch.tensor(thing)
    return found


def test_the_box_is_that_of_the_smaller_part():
    # 6 object patches are similar to 6 patches, 14 of the background to 14: the seed is in the object
    box = discover_object(features(objects=[(1, 2, 3, 5)]))
    assert box == pytest.approx((2 / 5, 1 / 4, 1.0, 3 / 4))


def test_only_the_part_that_is_connected_with_the_seed_counts():
    box = discover_object(features(objects=[(0, 0, 2, 2), (3, 4, 4, 5)]))
    assert box == pytest.approx((0, 0, 2 / 5, 2 / 4))  # the seed is the first of equal degree


def test_patches_that_touch_at_a_corner_are_not_connected():
    box = discover_object(features(objects=[(0, 0, 1, 1), (1, 1, 2, 2)]))
    assert box == pytest.approx((0, 0, 1 / 5, 1 / 4))


def test_seeds_of_low_degree_extend_the_object():
    """One patch of the object is not similar to the seed, but to the other seeds on the whole."""
    found = features(objects=[(0, 0, 1, 3)], thing=(-1.0, 0.0))
    found[0, 0] = torch.tensor([-0.1, 2.0])  # the seed: similar to itself and two more, and to no background
    found[0, 1], found[0, 2] = torch.tensor([-1.0, 0.0]), torch.tensor([-1.0, -0.1])
    alone = discover_object(found, most_seeds=1)
    together = discover_object(found, most_seeds=3)
    assert alone == pytest.approx((0, 0, 2 / 5, 1 / 4))
    assert together == pytest.approx((0, 0, 3 / 5, 1 / 4))


def test_an_outlier_patch_takes_the_seed():
    """What ruins LOST on models with outlier tokens: a patch like no other is the one of lowest degree."""
    found = features(objects=[(1, 2, 3, 5)])
    found[0, 0] = torch.tensor([-0.01, -500.0])
    assert discover_object(found) == pytest.approx((0, 0, 1 / 5, 1 / 4))


def test_the_bias_tells_apart_what_is_similar_anyway():
    found = features(objects=[(1, 2, 3, 5)], thing=(0.2, 1.0))
    assert discover_object(found) == (0.0, 0.0, 1.0, 1.0)  # all similarities are positive
    assert discover_object(found, bias=-0.5) == pytest.approx((2 / 5, 1 / 4, 1.0, 3 / 4))


def test_normalizing_makes_similarities_cosines():
    found = features(objects=[(1, 2, 3, 5)], thing=(0.2, 1.0))
    scaled = found * torch.linspace(0.001, 100, 20).reshape(4, 5, 1)
    assert discover_object(scaled, normalize=True, bias=-0.5) == pytest.approx((2 / 5, 1 / 4, 1.0, 3 / 4))
    assert discover_object(scaled, bias=-0.5) != pytest.approx((2 / 5, 1 / 4, 1.0, 3 / 4))


def test_a_seed_that_a_bias_leaves_out_is_a_box_of_one_patch():
    box = discover_object(features(objects=[(1, 2, 3, 5)]), bias=-100.0)
    assert (box[2] - box[0], box[3] - box[1]) == pytest.approx((1 / 5, 1 / 4))


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((0, 0, 2, 2), 4 / 12),  # inside the first: 4 shared, 12 together
        ((4, 4, 6, 6), 1.0),  # the second itself
        ((3, 0, 5, 2), 2 / 14),  # half outside the first: 2 shared, 12 + 4 - 2 together
        ((4, 0, 5, 3), 0.0),  # touches the first
        ((4, 0, 9, 2), 0.0),
    ],
)
def test_overlap_is_that_of_the_best_box(box, expected):
    boxes = np.array([[0.0, 0.0, 4.0, 3.0], [4.0, 4.0, 6.0, 6.0]])
    assert largest_overlap(box, boxes) == pytest.approx(expected)


def test_without_true_boxes_nothing_overlaps():
    assert largest_overlap((0, 0, 1, 1), np.zeros((0, 4))) == 0.0
