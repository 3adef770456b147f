"""Kinds of models that no constant was set on: built as they say. No test runs a calibration on them."""

import pytest
import torch
from benchmarks.planted_interventions import GONE, check_truth, effect_of, outliers_of
from benchmarks.planted_kinds import KINDS, UNSEEN_KINDS, make_known_model

from ttreg_hf.measuring.recorder import Recorder
from ttreg_hf.measuring.tower import VisionTower
from ttreg_hf.planted import synthetic_images

# special: a pooling head, rotary positions with gates, a norm in front of the blocks, no prefix token
SOME_FAMILIES = ("dinov2", "siglip", "dinov3-gated", "clip", "ijepa", "aimv2")


def _known(family, kind, seed=7):
    return make_known_model(family, kind, trigger="bright", seed=seed)


def _activations(known, images, pairs):
    """Of each neuron on the patches, `(B, N)`."""
    tower = VisionTower.of(known.model)
    with Recorder(tower, sorted({layer for layer, _ in pairs})) as recorder:
        recording = recorder(images)
    return [recording.acts_by_layer[layer][:, tower.layout.patches, neuron] for layer, neuron in sorted(pairs)]


def test_no_kind_is_both_seen_and_unseen():
    assert len(UNSEEN_KINDS) == 2
    assert not set(KINDS) & set(UNSEEN_KINDS)


@pytest.mark.parametrize("family", SOME_FAMILIES)
def test_outliers_that_the_feature_counts_go_when_their_neurons_are_moved_and_the_feature_changes(family):
    known, images = _known(family, "counted"), synthetic_images(16, seed=100)
    is_outlier_BN = outliers_of(known, images)
    assert 0.02 < is_outlier_BN.float().mean() < 0.13
    assert known.verdicts == ("unresolved",)
    for acts_BN in _activations(known, images, known.distractors):
        assert acts_BN[is_outlier_BN].median() > 10 * acts_BN[~is_outlier_BN].abs().mean()
    effect = effect_of(known, known.distractors, images)
    assert effect.outliers_left < GONE
    assert effect.similarity < 0.95  # the gate lets 0.05 pass


def test_the_feature_says_how_many_outliers_there_are():
    known, images = _known("dinov2", "counted"), synthetic_images(48, seed=100)
    with Recorder(VisionTower.of(known.model)) as recorder:
        feature_BD = recorder(images).feature_BD
    counts_B = outliers_of(known, images).sum(1).float()
    assert len(counts_B.unique()) > 2
    counted = known.model.config.hidden_size - 12
    assert torch.corrcoef(torch.stack([feature_BD[:, counted], counts_B]))[0, 1] > 0.8


@pytest.mark.parametrize("family", SOME_FAMILIES)
def test_some_images_have_outliers_and_others_have_none(family):
    known, images = _known(family, "some images"), synthetic_images(64, seed=100)
    is_outlier_BN = outliers_of(known, images)
    assert 0.05 < is_outlier_BN.any(1).float().mean() < 0.75
    for acts_BN in _activations(known, images, known.planted_pairs):
        fires_BN = acts_BN > acts_BN.max() / 8
        assert fires_BN.sum() >= 3
        assert is_outlier_BN[fires_BN].float().mean() > 0.75
    check_truth(known)
    effect = effect_of(known, known.planted_pairs, images)
    assert effect.outliers_left < GONE
    assert effect.similarity > 0.99
