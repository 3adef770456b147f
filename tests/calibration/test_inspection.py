"""Outliers, content and fixed positions; the detection block; where outliers begin and arrive."""

from typing import Any

import pytest
import torch
from torch import Tensor

from ttreg_hf.calibration.config import CalibrationConfig
from ttreg_hf.calibration.inspection import Inspection, inspect
from ttreg_hf.measuring.norms import NormStatistics
from ttreg_hf.measuring.outlier_rule import Content, OutlierRule
from ttreg_hf.measuring.patch_norms import PatchNorms

LAYERS, IMAGES, PATCHES = 6, 40, 64
GRID = (8, 8)
KEYS = [(image, str(image)) for image in range(IMAGES)]


def _norms(seed: int = 0, layers: int = LAYERS) -> Tensor:
    """Embeddings first, then blocks: ordinary norms that grow from block to block."""
    random = torch.Generator().manual_seed(seed)
    spread = torch.exp(0.1 * torch.randn(layers + 1, IMAGES, PATCHES, generator=random))
    return spread * torch.arange(1, layers + 2)[:, None, None] * 10


def _scattered(per_image: int = 2, seed: int = 1) -> Tensor:
    """Other patches in every image, `(B, N)` bool."""
    random = torch.Generator().manual_seed(seed)
    mask = torch.zeros(IMAGES, PATCHES, dtype=torch.bool)
    for row in mask:
        row[torch.randperm(PATCHES, generator=random)[:per_image]] = True
    return mask


def _inspect(norms: Tensor, *, default_layer: int = LAYERS - 1, **fields: Any) -> Inspection:
    statistics, patch_norms = NormStatistics(len(norms) - 1, torch.device("cpu")), PatchNorms()
    for part in norms.split(16, dim=1):
        statistics.add(part[1:])
        patch_norms.add(part[0], part[1:], KEYS[len(patch_norms.keys) :][: part.shape[1]], GRID)
    return inspect(statistics, patch_norms, CalibrationConfig(**fields), default_layer=default_layer)


def test_outliers_are_bounded_by_where_they_begin_and_arrive():
    norms, mask = _norms(), _scattered()
    norms[3, mask] *= 2.0  # block 2: on their way
    norms[4, mask] *= 6.0
    norms[5:, mask] *= 12.0
    found = _inspect(norms)
    assert (found.first_layer, found.last_layer) == (2, 4)
    assert found.report.first_outlier_layer == 2  # where a search begins, whatever norms other blocks have
    assert found.report.outlier_fraction[LAYERS - 1] == pytest.approx(2 / PATCHES)
    assert (found.report.fixed_position_share, found.report.content_share) == (0.0, 0.0)


def test_tokens_of_two_layers_are_searched_for_in_both():
    norms, early, late = _norms(), _scattered(1, seed=1), _scattered(1, seed=2)
    norms[2:, early] *= 12.0
    norms[5:, late & ~early] *= 12.0
    found = _inspect(norms)
    assert (found.first_layer, found.last_layer) == (1, 4)


def test_ordinary_norms_hold_no_outliers():
    found = _inspect(_norms())
    assert not found.has_outliers
    assert found.report.images_with_outliers == 0
    assert found.report.separation == (0.0,) * LAYERS


def test_a_token_that_was_as_extreme_before_the_blocks_is_content():
    norms, mask = _norms(), _scattered()
    norms[:, mask] *= 12.0
    found = _inspect(norms)
    assert not found.has_outliers
    assert found.report.separation == (0.0,) * LAYERS


def test_content_beside_outliers_is_left_out():
    norms, outliers, content = _norms(), _scattered(2, seed=1), _scattered(1, seed=2)
    norms[:, content] *= 12.0
    norms[4:, outliers & ~content] *= 12.0
    found = _inspect(norms)
    assert (found.first_layer, found.last_layer) == (3, 3)
    assert 0.2 < found.report.content_share < 0.5


def test_positions_that_are_outliers_in_every_image_are_another_mechanism():
    norms = _norms()
    norms[4:, :, [0, 63]] *= 12.0
    found = _inspect(norms)
    assert not found.has_outliers
    assert found.rule.fixed_positions == (0, 63)
    assert found.report.fixed_position_share == 1.0


def test_fixed_positions_beside_outliers_are_left_out():
    norms, mask = _norms(), _scattered()
    norms[4:, :, 63] *= 12.0
    norms[5:, mask] *= 12.0
    found = _inspect(norms)
    assert found.rule.fixed_positions == (63,)
    assert (found.first_layer, found.last_layer) == (4, 4)
    assert found.report.fixed_position_share == pytest.approx(1 / 3, abs=0.03)


def test_the_block_that_separates_much_better_is_chosen():
    """As in DINOv2-S, whose last block hides the outliers."""
    norms, mask = _norms(), _scattered()
    norms[3:6, mask] *= 12.0
    assert _inspect(norms).report.detection_layer == 4
    assert _inspect(norms, default_layer=3).report.detection_layer == 3  # good enough
    assert _inspect(norms, detection_layer=5).report.detection_layer == 5
    assert not _inspect(norms, detection_layer=5).has_outliers


def test_of_blocks_that_separate_much_better_the_last_is_chosen():
    """As in a grown model, where an earlier block separated best, and later ones wrote on."""
    norms, mask = _norms(), _scattered()
    norms[3:6, mask] *= 12.0
    norms[3, mask] *= 1.5
    found = _inspect(norms).report
    assert max(found.separation) == found.separation[2] > found.separation[4] > 0.7 * found.separation[2]
    assert found.detection_layer == 4


@pytest.mark.parametrize("default_layer", [LAYERS - 1, 0], ids=["the default shows all", "the default shows none"])
def test_a_block_before_most_outliers_are_made_is_not_chosen_however_well_it_separates(default_layer):
    """The first ones are the largest: block 2 shows them alone, far from the rest."""
    norms, early, late = _norms(), _scattered(1, seed=1), _scattered(3, seed=2)
    norms[3:, early] *= 60.0
    norms[5:, late & ~early] *= 8.0
    found = _inspect(norms, default_layer=default_layer)
    separation = found.report.separation
    assert separation[2] > 1.5 * separation[LAYERS - 1] > 0
    assert found.report.detection_layer == LAYERS - 1
    assert (found.first_layer, found.last_layer) == (2, 4)


def test_a_given_threshold_has_no_exceptions():
    norms = _norms()
    norms[:, :, 0] *= 12.0
    found = _inspect(norms, norm_threshold=200.0)
    assert found.rule == OutlierRule(LAYERS - 1, 200.0)
    assert found.has_outliers


def test_blocks_with_larger_norms_have_no_outliers_for_that():
    """Norms grow from block to block: all of the last one's are above the threshold of the detection block."""
    norms = _norms()
    norms[6] *= 100.0
    for threshold in (None, 75.0):
        report = _inspect(norms, default_layer=4, norm_threshold=threshold).report
        shown = report.photographs_with_outliers
        assert (shown > 0) == any(report.outlier_fraction) == (report.first_outlier_layer is not None)
        assert report.outlier_fraction[5] <= report.outlier_fraction[4]
    none = _inspect(norms, default_layer=4, norm_threshold=1e3).report
    assert (none.outlier_fraction, none.first_outlier_layer, none.images_with_outliers) == ((0.0,) * 6, None, 0.0)


def test_the_same_tokens_are_followed_through_the_blocks():
    """At the detection block all of them; before they begin none; content and fixed positions nowhere."""
    norms, outliers = _norms(), _scattered(2)
    content = _scattered(1, seed=2) & ~outliers
    norms[:, content] *= 12.0
    norms[4:, outliers] *= 12.0
    norms[4:, :, 63] *= 12.0
    norms[6] /= norms[6]  # the last block hides them
    found = _inspect(norms, default_layer=4)
    report = found.report
    share = float(found.report.outlier_fraction[4])
    kept = outliers.clone()
    kept[:, 63] = False
    assert share == pytest.approx(kept.double().mean().item())
    assert report.outlier_fraction == pytest.approx((0, 0, 0, share, share, 0))
    assert report.photographs_with_outliers == int(kept.any(1).sum())


def test_crops_and_copies_of_a_photograph_are_counted_once():
    norms, mask = _norms(), _scattered()
    norms[4:, mask] *= 12.0
    statistics, patch_norms = NormStatistics(LAYERS, torch.device("cpu")), PatchNorms()
    statistics.add(norms[1:])
    patch_norms.add(norms[0], norms[1:], [(image // 4, str(image)) for image in range(IMAGES)], GRID)
    report = inspect(statistics, patch_norms, CalibrationConfig(), default_layer=5).report
    assert (report.num_images, report.num_photographs, report.photographs_with_outliers) == (40, 10, 10)


@pytest.mark.parametrize("norm_threshold", [None, 200.0])
def test_batches_do_not_matter(norm_threshold):
    norms, mask = _norms(), _scattered()
    norms[4:, mask] *= 12.0
    whole, patch_norms = NormStatistics(LAYERS, torch.device("cpu")), PatchNorms()
    whole.add(norms[1:])
    patch_norms.add(norms[0], norms[1:], KEYS, GRID)
    config = CalibrationConfig(norm_threshold=norm_threshold)
    at_once = inspect(whole, patch_norms, config, default_layer=5)
    in_parts = _inspect(norms, norm_threshold=norm_threshold)
    assert at_once.rule == in_parts.rule
    assert (at_once.first_layer, at_once.last_layer) == (in_parts.first_layer, in_parts.last_layer)


def test_content_has_its_share_of_the_excess_before_the_blocks():
    content = Content(embedding_median=1.0, detection_median=10.0, share=0.5)
    before, after = torch.tensor([3.9, 4.1, 4.1]), torch.tensor([160.0, 160.0, 200.0])
    assert content.is_content(before, after).tolist() == [False, True, False]
