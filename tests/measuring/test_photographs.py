"""Crops and copies of one photograph count once."""

import pytest
import torch

from ttreg_hf.images.batches import Batch
from ttreg_hf.images.data_sets import NamedImages
from ttreg_hf.images.data_source import DataSource
from ttreg_hf.measuring.intervention import Intervention
from ttreg_hf.measuring.outlier_rule import OutlierRule
from ttreg_hf.measuring.photographs import (
    count_photographs,
    means_of_photographs,
    photograph_keys,
    photographs_of,
    sums_of_photographs,
)
from ttreg_hf.measuring.tower import VisionTower
from ttreg_hf.planted import planted_model, synthetic_images


def test_images_are_photographs_of_their_own_if_nothing_is_said():
    keys = photograph_keys(Batch(torch.rand(4, 3, 8, 8), (7, 9, 11, 30)))
    assert photographs_of(keys) == [0, 1, 2, 3]


def test_crops_of_one_photograph_are_one():
    keys = photograph_keys(Batch(torch.rand(6, 3, 8, 8), tuple(range(6))), lambda place: place // 2)
    assert photographs_of(keys) == [0, 0, 1, 1, 2, 2]
    assert count_photographs(keys) == 3


def test_copies_to_the_bit_are_one_whatever_they_are_said_to_be():
    images = torch.rand(2, 3, 8, 8)[[0, 1, 0, 0, 1]]
    assert photographs_of(photograph_keys(Batch(images, tuple(range(5))))) == [0, 1, 0, 0, 1]
    images[4, 0, 0, 0] += 1e-3
    assert photographs_of(photograph_keys(Batch(images, tuple(range(5))))) == [0, 1, 0, 0, 2]


def test_values_are_summed_and_averaged_by_photograph():
    values, photographs = torch.tensor([1.0, 2.0, 4.0, 8.0]), [0, 1, 0, 2]
    assert sums_of_photographs(values, photographs).tolist() == [5.0, 2.0, 8.0]
    assert means_of_photographs(values, photographs).tolist() == [2.5, 2.0, 8.0]


def test_named_images_know_their_photographs():
    named = NamedImages([], DataSource(), photographs=(3, 3, 5))
    assert [named.photograph_of(place) for place in range(3)] == [3, 3, 5]
    assert NamedImages([], DataSource()).photograph_of(12) == 12
    with pytest.raises(ValueError, match="`photographs` holds one number an image, got 3 for more images"):
        named.photograph_of(3)


def test_an_intervention_counts_by_photograph():
    planted = planted_model()
    batches = [Batch(synthetic_images(9, seed=7), tuple(range(9)))]
    rule = OutlierRule(4, planted.norm_threshold)
    found = Intervention(VisionTower.of(planted.model), batches, rule, photograph_of=lambda place: place // 3)
    assert (found.before.num_images, found.before.num_photographs) == (9, 3)
    assert found.num_photographs_with_outliers == 3
    assert found.before.outliers_U.tolist() == found.before.outliers_B.reshape(3, 3).sum(1).tolist()
    after = found.after(planted.register_neurons)
    assert after.photographs == found.before.photographs  # known from the base model, not told again
    assert found.on_few(4).before.photographs == [0, 0, 0, 1]
