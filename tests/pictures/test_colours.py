"""Colours of features."""

import pytest
import torch

from ttreg_hf.pictures.colours import pca_colours


def test_pca_colours_are_equal_where_the_features_are():
    before = torch.randn(6, 5, 16, generator=torch.Generator().manual_seed(0))
    after = before.clone()
    after[2, 3] += 100.0  # one outlier token
    colours = pca_colours([before, after])
    same = torch.ones(6, 5, dtype=torch.bool)
    same[2, 3] = False
    assert torch.equal(colours[0][same], colours[1][same])
    assert not torch.equal(colours[0][2, 3], colours[1][2, 3])


def test_pca_colours_use_the_whole_range_despite_outliers():
    features = torch.randn(10, 10, 16, generator=torch.Generator().manual_seed(1))
    plain = pca_colours([features])[0]
    features[0, :4] = 1000.0
    (colours,) = pca_colours([features])
    assert colours.shape == (10, 10, 3)
    assert colours.dtype == torch.float32
    assert 0 <= colours.min() <= colours.max() <= 1
    assert colours[1:].std(dim=(0, 1)).min() > 0.8 * plain[1:].std(dim=(0, 1)).min()


def test_pca_colours_show_the_directions_of_largest_variance_in_order():
    random = torch.Generator().manual_seed(3)
    spread = torch.tensor([1.0, 1.0, 9.0, 1.0, 5.0, 1.0, 1.0, 3.0]) / 10
    features = torch.rand(12, 12, 8, generator=random) * spread
    state = torch.get_rng_state()
    (colours,) = pca_colours([features])
    assert torch.equal(torch.get_rng_state(), state)
    for colour, channel in enumerate((2, 4, 7)):
        pair = torch.stack([colours[..., colour].flatten(), features[..., channel].flatten()])
        assert torch.corrcoef(pair)[0, 1] > 0.95


@pytest.mark.parametrize("channels", [1, 2])
def test_pca_colours_of_few_channels_leave_colours_unused(channels):
    features = torch.randn(4, 4, channels, generator=torch.Generator().manual_seed(2))
    (colours,) = pca_colours([features])
    assert (colours[..., :channels].amax(dim=(0, 1)) == 1).all()
    assert (colours[..., channels:] == 0).all()


def test_pca_colours_of_constant_features_are_constant():
    (colours,) = pca_colours([torch.ones(3, 3, 8)])
    assert colours.isfinite().all()
    assert colours.std() == 0
