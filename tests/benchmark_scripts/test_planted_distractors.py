"""Planted models with distractors: each is what it says, whatever calibration makes of it.

Those that the selection has not seen are in `test_planted_unseen.py`.
"""

import dataclasses
import functools

import pytest
import torch
from benchmarks.planted_interventions import GONE, check_truth, effect_of, needed_neurons, outliers_of
from benchmarks.planted_kinds import FAMILIES, KINDS, log_normal, make_known_model, student_t, triggers_of
from benchmarks.planted_truth import graded_layout, graded_model

from ttreg_hf.known.position_table import position_table
from ttreg_hf.measuring.recorder import Recorder
from ttreg_hf.measuring.tower import VisionTower
from ttreg_hf.planted import synthetic_images

PLANTED = [
    "planted",
    "hot neurons",
    "early neuron",
    "cascade",
    "two populations",
    "planted and trained registers",
    "planted and fixed positions",
]


# what is wired in another way there: a normalisation before the blocks, a pooling head, rotary positions
SPECIAL = {"content": "clip", "early neuron": "siglip2", "dense": "siglip", "fixed positions": "dinov3-gated"}


def _some(*kinds, seed=7):
    """Two families of each kind, so that every family has its turn, and those where it is wired in another way."""
    cells = []
    for kind in kinds:
        able = [family for family in FAMILIES if triggers_of(family, kind)]
        start = 2 * list(KINDS).index(kind)
        chosen = [able[(start + turn) % len(able)] for turn in range(2)]
        cells += [(family, kind) for family in dict.fromkeys([*chosen, SPECIAL.get(kind, chosen[0])])]
    return [
        pytest.param(family, kind, triggers[turn % len(triggers)], seed, id=f"{kind}-{family}")
        for turn, (family, kind) in enumerate(cells)
        if (triggers := triggers_of(family, kind))
    ]


@functools.cache
def _known(family, kind, trigger, seed):
    return make_known_model(family, kind, trigger=trigger, seed=seed)


@functools.cache
def _images(seed=100):
    return synthetic_images(16, seed=seed)


def _record(known, layers=()):
    with Recorder(VisionTower.of(known.model), layers) as recorder:
        return recorder(_images())


def _patches(known, tokens):
    return tokens[..., VisionTower.of(known.model).layout.patches]


@pytest.mark.parametrize(("family", "kind", "trigger", "seed"), _some(*PLANTED))
def test_every_planted_neuron_fires_on_outliers_and_on_nothing_else(family, kind, trigger, seed):
    known = _known(family, kind, trigger, seed)
    layers = sorted({neuron.layer for neuron in known.register_neurons})
    with Recorder(VisionTower.of(known.model), layers) as recorder:
        recording = recorder(known.sample)
    is_outlier_BN = outliers_of(known)
    for neuron in known.register_neurons:
        acts_BT = recording.acts_by_layer[neuron.layer][..., neuron.neuron]
        fires_BN = _patches(known, acts_BT) > neuron.score / 4
        assert fires_BN.sum() >= 3
        assert is_outlier_BN[fires_BN].float().mean() > 0.75  # a weak one of its kind ramps up from ordinary norms
        assert (acts_BT[:, VisionTower.of(known.model).layout.prefix].abs() < neuron.score / 4).all()


@pytest.mark.parametrize(("family", "kind", "trigger", "seed"), _some(*PLANTED))
def test_moving_the_planted_neurons_takes_the_outliers_away_and_leaves_the_feature(family, kind, trigger, seed):
    known = _known(family, kind, trigger, seed)
    assert 0.015 < outliers_of(known, _images()).float().mean() < 0.13
    effect = effect_of(known, known.planted_pairs, _images())
    assert effect.similarity > 0.995
    assert effect.outliers_left < 0.01


def test_what_is_needed_is_a_smallest_part_of_what_was_planted():
    known = dataclasses.replace(graded_model("dinov2", trigger="bright", seed=7, layout={2: 8}), sample=_images())
    needed = needed_neurons(known)
    assert needed < known.planted_pairs
    assert effect_of(known, needed).outliers_left < GONE
    assert all(effect_of(known, needed - {pair}).outliers_left >= GONE for pair in needed)


def test_of_a_cascade_only_the_first_layer_is_needed():
    known = dataclasses.replace(_known("dinov2", "cascade", "bright", 7), sample=_images())
    first = min(neuron.layer for neuron in known.register_neurons)
    assert {layer for layer, _ in needed_neurons(known)} == {first}
    later = {pair for pair in known.planted_pairs if pair[0] > first}
    assert effect_of(known, later).outliers_left > 0.8


@pytest.mark.parametrize("seed", range(10))
def test_strengths_are_graded_as_in_real_models(seed):
    counts, strengths = graded_layout(seed)
    assert sum(counts.values()) == len(strengths) <= 45
    assert len(counts) <= 6
    assert len(strengths) == 1 or max(strengths) / min(strengths) == pytest.approx(30)


@pytest.mark.parametrize(("family", "kind", "trigger", "seed"), _some("hot neurons"))
def test_hot_neurons_fire_on_ordinary_patches_and_score_above_the_planted_ones(family, kind, trigger, seed):
    known = _known(family, kind, trigger, seed)
    recording = _record(known, range(10))
    is_outlier_BN = outliers_of(known, _images())

    def on(layer, neuron, mask_BN):
        return float(_patches(known, recording.acts_by_layer[layer][..., neuron])[mask_BN].abs().mean())

    strongest = max(on(*pair, is_outlier_BN) for pair in known.planted_pairs)
    above = [on(*pair, is_outlier_BN) > strongest for pair in known.distractors]
    assert sum(above) >= len(above) * 2 / 3
    assert all(on(*pair, ~is_outlier_BN) > 10 for pair in known.distractors)
    assert effect_of(known, known.distractors, _images()).outliers_left == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(("family", "kind", "trigger", "seed"), _some("early neuron"))
def test_the_early_neuron_fires_on_outliers_and_is_needed_for_the_feature(family, kind, trigger, seed):
    known = _known(family, kind, trigger, seed)
    ((layer, neuron),) = known.distractors
    acts_BN = _patches(known, _record(known, [layer]).acts_by_layer[layer][..., neuron])
    is_outlier_BN = outliers_of(known, _images())
    assert acts_BN[is_outlier_BN].median() > 0.5 * max(planted.score for planted in known.register_neurons)
    assert layer < min(planted.layer for planted in known.register_neurons)
    effect = effect_of(known, known.distractors, _images())
    assert effect.similarity < 0.95
    assert effect.outliers_left > 0.9


@pytest.mark.parametrize(("family", "kind", "trigger", "seed"), _some("log-normal", "student t", seed=0))
def test_heavy_tails_are_heavy_and_have_no_gap(family, kind, trigger, seed):
    known = _known(family, kind, trigger, seed)
    norms = _patches(known, _record(known).norms_LBT)[-1].flatten()
    octaves = (norms / norms.median()).log2()
    assert octaves.max() > 1.25
    counts = torch.histc(octaves[octaves > 0.25], bins=4, min=0.25, max=octaves.max()).tolist()
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] > 0


@pytest.mark.parametrize(("family", "kind", "trigger", "seed"), _some("content"))
def test_content_is_extreme_before_the_first_block(family, kind, trigger, seed):
    known = _known(family, kind, trigger, seed)
    seen = []
    handle = VisionTower.of(known.model).blocks[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    norms = _patches(known, _record(known).norms_LBT)[-1]
    handle.remove()
    before = _patches(known, seen[0].norm(dim=-1))
    extreme = norms > 4 * norms.median()
    assert 0.03 < extreme.float().mean() < 0.1
    torch.testing.assert_close(before[extreme], norms[extreme], rtol=0.05, atol=0.0)


@pytest.mark.parametrize(
    ("family", "kind", "trigger", "seed"), _some("fixed positions", "planted and fixed positions")
)
def test_fixed_outliers_are_at_the_same_places_of_every_image(family, kind, trigger, seed):
    known = _known(family, kind, trigger, seed)
    share_N = outliers_of(known, _images()).float().mean(0)
    fixed = share_N > 0.9
    assert 1 <= fixed.sum() <= 4
    assert share_N[~fixed].max() < (0.01 if kind == "fixed positions" else 0.4)


def test_fixed_outliers_stay_at_their_places_where_planted_ones_hide_what_marks_them():
    """Five layers of planted neurons come before the two of fixed positions in this one."""
    check_truth(_known("dinov2-swiglu", "planted and fixed positions", "low_information", 0))


@pytest.mark.parametrize(
    ("family", "kind", "trigger", "seed"), _some("table spikes", "needed table spikes", "attention at fixed positions")
)
def test_spikes_and_marks_of_the_table_make_outliers_there_and_nowhere_else(family, kind, trigger, seed):
    known = _known(family, kind, trigger, seed)
    share_N = outliers_of(known, _images()).float().mean(0)
    fixed = [divmod(index, 8) for index in (share_N > 0.9).nonzero().flatten().tolist()]
    assert set(known.fixed_positions) <= set(fixed)
    assert 1 <= len(fixed) <= 4
    assert share_N[share_N <= 0.9].max() < 0.01
    table_norms = position_table(known.model).norm(dim=2)
    spikes = table_norms > 5 * table_norms.median()
    assert [tuple(place) for place in spikes.nonzero().tolist()] == sorted(known.fixed_positions)


def test_what_needed_spikes_point_to_is_the_feature():
    """The same table without them gives other features: the texture of those patches no longer moves them."""
    known = _known("siglip", "needed table spikes", "bright", 7)
    before = _record(known).feature_BD
    table = position_table(known.model)
    spikes = {place: table[place].clone() for place in known.fixed_positions}
    with torch.no_grad():
        for place in spikes:
            table[place] = table[0, 0] if place != (0, 0) else table[4, 4]
        without = _record(known).feature_BD
        for place, row in spikes.items():
            table[place] = row
    assert torch.cosine_similarity(before, without).mean() < 0.9


@pytest.mark.parametrize(("family", "kind", "trigger", "seed"), _some("two populations"))
def test_two_populations_begin_far_apart_on_other_patches_and_with_other_norms(family, kind, trigger, seed):
    known = _known(family, kind, trigger, seed)
    early, late = sorted({neuron.layer for neuron in known.register_neurons})
    assert late - early >= 5
    norms_LBN = _patches(known, _record(known).norms_LBT)
    first_BN = norms_LBN[late - 1] > known.norm_threshold
    second_BN = (norms_LBN[late] > known.norm_threshold) & ~first_BN
    ratio = norms_LBN[-1][second_BN].median() / norms_LBN[-1][first_BN].median()
    assert not 0.8 < ratio < 1.25
    assert second_BN.sum() >= 8


@pytest.mark.parametrize(
    ("family", "kind", "trigger", "seed"), _some("trained registers", "planted and trained registers")
)
def test_trained_registers_hold_large_norms(family, kind, trigger, seed):
    known = _known(family, kind, trigger, seed)
    norms_BT = _record(known).norms_LBT[-1]
    assert (norms_BT[:, 1:5] > 2 * known.norm_threshold).all()
    assert (norms_BT[:, 0] < known.norm_threshold).all()
    assert outliers_of(known, _images()).any() == (kind != "trained registers")


@pytest.mark.parametrize(("family", "kind", "trigger", "seed"), _some("attention", "dense"))
def test_where_neurons_cannot_help_they_do_not(family, kind, trigger, seed):
    known = _known(family, kind, trigger, seed)
    norms_LBN = _patches(known, _record(known).norms_LBT)
    assert norms_LBN[-1].max() > 5 * norms_LBN[-1].median()
    if kind == "attention":
        layer = int((norms_LBN.amax((1, 2)) > known.norm_threshold).int().argmax())
        width = _record(known, [layer]).acts_by_layer[layer].shape[-1]
        every = [(layer, neuron) for neuron in range(width)]
        assert effect_of(known, every, _images()).outliers_left > 0.9
    else:
        extreme = norms_LBN[-1] > 5 * norms_LBN[-1].median()
        some = effect_of(known, known.distractors[: len(known.distractors) // 2], _images())
        every = effect_of(known, known.distractors, _images())
        assert 0.03 < extreme.float().mean() < 0.1
        assert some.outliers_left > GONE
        assert every.similarity < 0.9


@pytest.mark.parametrize("family", ["dinov2", "clip", "siglip"])
def test_nothing_has_no_outliers_though_the_patches_are_there_that_would_be(family):
    known = _known(family, "nothing", "bright", 7)
    assert not outliers_of(known, _images()).any()
    assert known.verdicts == ("clean",)
    assert known.register_neurons == ()


def test_quantiles_are_those_of_their_distributions():
    quantiles = torch.tensor([0.5, 0.841344746], dtype=torch.float64)
    torch.testing.assert_close(log_normal(0.5)(quantiles), torch.tensor([1.0, 1.648721271], dtype=torch.float64))
    for degrees, median in ((2, 0.816497), (4, 0.740697)):
        middle = student_t(degrees)(torch.tensor([0.5], dtype=torch.float64))
        torch.testing.assert_close(middle, torch.tensor([median], dtype=torch.float64), rtol=1e-5, atol=0.0)


@pytest.mark.parametrize(("family", "kind", "trigger", "seed"), _some("many patches"))
def test_two_fifths_of_the_patches_are_marked_by_three_neurons_and_no_outliers(family, kind, trigger, seed):
    known = _known(family, kind, trigger, seed)
    assert "fixed" not in known.verdicts
    assert known.register_neurons == ()
    assert len(known.distractors) == 3
    assert 0.3 < outliers_of(known).float().mean() < 0.45
    assert effect_of(known, known.distractors).outliers_left < GONE  # they alone make them
