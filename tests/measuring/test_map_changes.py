"""Figures of the maps that people look at."""

import dataclasses

import pytest
import torch

from ttreg_hf.measuring.image_maps import image_maps
from ttreg_hf.measuring.map_changes import _entropy
from ttreg_hf.planted import planted_model, synthetic_images


def test_entropy_of_an_even_spread_is_1():
    (maps,) = image_maps(planted_model().model, synthetic_images(1, seed=7), detection_layer=4)
    even = dataclasses.replace(maps, attention=torch.full((8, 8), 0.01))
    peak = dataclasses.replace(maps, attention=torch.eye(64)[5].reshape(8, 8))
    assert (_entropy(even), _entropy(peak)) == (pytest.approx(1.0), pytest.approx(0.0))
