"""The rows of constant mode: measured, chosen, held against controls, saved, and brought to a model."""

import dataclasses
import functools

import pytest
import torch
from benchmarks.planted_kinds import make_known_model

from ttreg_hf.applying import add_test_time_registers, constants_of
from ttreg_hf.calibration.calibration_result import CalibrationResult
from ttreg_hf.calibration.calibration_run import calibrate
from ttreg_hf.calibration.config import CalibrationConfig, GateConfig
from ttreg_hf.calibration.constant_mode import (
    CONSTANT,
    MEAN_PATCH,
    RANDOM,
    SHUFFLED,
    TOKEN,
    ZEROED,
    TriedFirstLayer,
    chosen_first_layer,
    measure_constants,
)
from ttreg_hf.calibration.gate import GateCheck
from ttreg_hf.calibration.verification_run import verify_patched
from ttreg_hf.images.batches import Batch
from ttreg_hf.measuring.intervention import Intervention
from ttreg_hf.measuring.register_rows import RegisterRows, ShuffledRegisters, rows_of
from ttreg_hf.measuring.tower import VisionTower
from ttreg_hf.modeling.families import find_attention
from ttreg_hf.planted import synthetic_images
from ttreg_hf.publishing.checkpoint import VerdictError, check_verdict

COUNT = 96


@functools.cache
def _found(family: str) -> tuple:
    known = make_known_model(family, "planted", trigger="bright", seed=1)
    images = synthetic_images(COUNT, seed=20_000)
    return known, calibrate(known.model, images, config=CalibrationConfig(num_images=COUNT))


def _batch(known, count: int = 6) -> Batch:
    return Batch(known.sample[:count], tuple(range(count)))


@pytest.mark.parametrize("family", ["siglip", "siglip2", "dinov3"])
def test_the_rows_do_the_registers_work_and_the_controls_do_not(family):
    known, result = _found(family)
    assert result.verdict == "fixed"
    found = result.constant_mode
    effects = found.effects
    assert list(effects) == [TOKEN, CONSTANT, ZEROED, RANDOM, MEAN_PATCH, SHUFFLED]
    assert all(effect.outlier_ratio == 0 for effect in effects.values())
    assert effects[TOKEN].drift == result.verification.drifts.moved
    needed = effects[ZEROED].drift.pooled
    assert effects[CONSTANT].drift.pooled < 0.5 * needed
    for name in (RANDOM, MEAN_PATCH):
        assert effects[name].drift.pooled > 0.7 * needed
    assert found.passed
    assert found.reasons == ()
    layers = VisionTower.of(known.model).num_layers
    assert len(found.agreement) == len(result.constants) == layers - found.first_layer
    assert min(found.agreement) > 0.9
    assert chosen_first_layer(found.tried, 0.02) == found.first_layer
    assert all(each.outlier_ratio == 0 for each in found.tried)
    assert {0, min(n.layer for n in result.register_neurons)} <= {each.layer for each in found.tried}


@pytest.mark.parametrize(
    ("ratio_at_0", "ratio_at_9", "expected"),
    [
        (0.01, 0.02, 9),  # both take the outliers away, and 9 drifts less
        (0.01, 0.03, 0),  # outliers stay at 9
        (0.40, 0.90, 0),  # they stay at both: fewest
    ],
)
def test_the_first_layer_takes_outliers_away_before_it_drifts_least(ratio_at_0, ratio_at_9, expected):
    tried = TriedFirstLayer(0, ratio_at_0, 0.003, 0.004), TriedFirstLayer(9, ratio_at_9, 0.002, 0.003)
    assert chosen_first_layer(tried, tolerated=0.02) == expected


def test_outliers_that_stay_are_seen_at_every_first_layer_and_advise_the_token():
    known, result = _found("siglip")
    tower = VisionTower.to_measure(known.model)
    parts = (known.sample[start : start + 16] for start in (0, 16, 32))
    average, choose, verify = (
        Intervention(tower, [Batch(part, tuple(range(16)))], result.outlier_rule) for part in parts
    )
    (right,) = result.register_neurons
    wrong = dataclasses.replace(right, neuron=right.neuron + 1)
    found, _ = measure_constants(average, choose, verify, [wrong], gate=GateConfig())
    assert len({each.layer for each in found.tried}) > 1
    assert all(each.outlier_ratio == choose.outcome([wrong]).outlier_ratio > 0.5 for each in found.tried)
    assert not found.passed
    assert all(reason.endswith("Keep token mode, the default: it was verified.") for reason in found.reasons)


def test_the_rows_are_the_means_of_what_the_attentions_read():
    known, result = _found("siglip")
    patched = add_test_time_registers(known.model, result.register_neurons)
    tower, read = VisionTower.of(patched), []
    handles = [
        find_attention(block).register_forward_pre_hook(
            lambda module, args, kwargs: read.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
        )
        for block in tower.blocks
    ]
    with torch.no_grad():
        patched(known.sample[:6])
    for handle in handles:
        handle.remove()
    rows = rows_of(VisionTower.of(add_test_time_registers(known.model, result.register_neurons)), [_batch(known)])
    place = tower.layout.registers.start
    expected = torch.stack([tokens[:, place] for tokens in read], dim=1).double()
    torch.testing.assert_close(rows.registers_BLD, expected)
    patches = torch.stack([tokens[:, tower.layout.patches].mean(1) for tokens in read], dim=1).double()
    torch.testing.assert_close(rows.patches_BLD, patches, rtol=1e-4, atol=1e-5)


def test_padding_is_no_part_of_the_mean_patch():
    known, result = _found("siglip")
    rows = RegisterRows(VisionTower.of(add_test_time_registers(known.model, result.register_neurons)))
    layout = rows.tower.layout
    tokens = torch.randn(2, layout.patches.start + 4, 3)
    mask = torch.ones(2, layout.patches.start + 4, dtype=torch.long)
    mask[0, -2:] = 0
    rows.take(0, tokens, mask)
    _, mean = rows._of_batch[0]
    torch.testing.assert_close(mean[0], tokens[0, layout.patches][:2].mean(0))
    torch.testing.assert_close(mean[1], tokens[1, layout.patches].mean(0))


def test_shuffling_reads_another_images_register_and_is_gone_afterwards():
    known, result = _found("siglip")
    tower = VisionTower.of(add_test_time_registers(known.model, result.register_neurons))
    plain = rows_of(tower, [_batch(known)]).registers_BLD
    with ShuffledRegisters(tower, first_layer=len(tower.blocks) - 1):
        shuffled = rows_of(tower, [_batch(known)]).registers_BLD
    torch.testing.assert_close(shuffled[:, -1], plain[:, -1].roll(1, dims=0))
    torch.testing.assert_close(shuffled[:, :-1], plain[:, :-1])
    assert torch.equal(rows_of(tower, [_batch(known)]).registers_BLD, plain)


def test_a_result_keeps_its_rows_and_brings_them_to_a_model(tmp_path):
    known, result = _found("siglip")
    result.save(tmp_path)
    read = CalibrationResult.load(tmp_path)
    assert read.constant_mode == result.constant_mode
    assert torch.equal(read.constants, result.constants)
    patched = add_test_time_registers(known.model, read, test_time_register_mode="constant")
    assert torch.equal(constants_of(patched), result.constants)
    assert patched.config.constant_first_layer == result.constant_mode.first_layer
    assert constants_of(add_test_time_registers(known.model, read)) is None  # a token is the default


def test_a_model_that_needs_no_patching_has_no_rows():
    known = make_known_model("siglip", "nothing", trigger="bright", seed=1)
    result = calibrate(known.model, synthetic_images(64, seed=1), config=CalibrationConfig(num_images=64))
    assert result.verdict != "fixed"
    assert result.constant_mode is None
    assert result.constants is None


def test_a_gate_that_does_not_ask_for_rows_gets_the_same_verdict_without_them():
    known, result = _found("siglip")
    images, config = synthetic_images(COUNT, seed=20_000), CalibrationConfig(num_images=COUNT)
    found = calibrate(known.model, images, config=config, gate=GateConfig(constant_mode=False))
    assert (found.constant_mode, found.constants) == (None, None)
    assert (found.verdict, found.register_neurons) == (result.verdict, result.register_neurons)


def test_constant_mode_that_does_not_keep_its_bounds_is_refused_and_can_be_forced():
    _, result = _found("siglip")
    failing = GateCheck("drift of ordinary patches", 0.5, 0.01, "Take the token.")
    mode = dataclasses.replace(result.constant_mode, checks=(*result.constant_mode.checks, failing))
    worse = dataclasses.replace(result, constant_mode=mode)
    check_verdict(worse, force=False)  # with a token it is as good as before
    with pytest.raises(VerdictError, match=r"drift of ordinary patches is 0\.5, allowed is 0\.01.*`--mode token`"):
        check_verdict(worse, force=False, mode="constant")
    check_verdict(worse, force=True, mode="constant")


def test_a_checkpoint_in_constant_mode_is_verified_as_it_is():
    known, result = _found("siglip")
    images, config = synthetic_images(COUNT, seed=77), CalibrationConfig(num_images=COUNT)
    patched = add_test_time_registers(known.model, result, test_time_register_mode="constant")
    found = verify_patched(patched, images, calibration=result, config=config)
    assert found.verdict == "fixed"
    assert len(found.constant_checks) == 3
    other = 8 * torch.randn_like(result.constants)
    spoilt = add_test_time_registers(
        known.model, result.register_neurons, test_time_register_mode="constant", constants=other
    )
    found = verify_patched(spoilt, images, calibration=result, config=config)
    assert found.verdict == "unresolved"
    assert any(reason.startswith("In constant mode: drift of") for reason in found.reasons)
    assert found.verification.verdict == "fixed"  # of its neurons
