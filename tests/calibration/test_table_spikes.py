"""Outliers at the same places in every image: what takes them away is found, judged by controls, saved, applied."""

import dataclasses
import functools

import pytest
import torch
from benchmarks.planted_kinds import make_known_model

from ttreg_hf.applying import add_test_time_registers
from ttreg_hf.calibration import finding
from ttreg_hf.calibration.calibration_result import CalibrationResult
from ttreg_hf.calibration.calibration_run import calibrate
from ttreg_hf.calibration.config import CalibrationConfig
from ttreg_hf.calibration.verification_run import verify_patched
from ttreg_hf.evaluation.rows import model_rows
from ttreg_hf.images.batches import Batch
from ttreg_hf.known.position_table import position_table
from ttreg_hf.measuring.intervention import Intervention
from ttreg_hf.measuring.outlier_rule import Content, OutlierRule
from ttreg_hf.measuring.table_spikes import random_rows, without_spikes
from ttreg_hf.measuring.tower import VisionTower
from ttreg_hf.planted import synthetic_images
from ttreg_hf.report.neuron_switch import State, record_switch
from ttreg_hf.report.switch_data import switch_data
from ttreg_hf.report.switch_file import load_switch, save_switch

COUNT = 64
CONFIG = CalibrationConfig(num_images=COUNT)


@functools.cache
def _found(family: str, kind: str, seed: int = 1):
    known = make_known_model(family, kind, trigger="bright", seed=seed)
    images = synthetic_images(COUNT, seed=20_000)
    return known, calibrate(known.model, images, config=CONFIG)


@pytest.mark.parametrize("family", ["siglip", "siglip2", "dinov2", "clip"])
def test_spikes_of_the_table_are_found_and_nothing_else(family):
    known, result = _found(family, "table spikes")
    assert (result.verdict, result.reasons) == ("fixed", ())
    assert set(result.fixed_positions) == set(known.fixed_positions)
    assert result.register_neurons == ()
    assert result.outlier_rule.counts_fixed
    assert result.norms.fixed_position_share == 1.0
    verification = result.verification
    assert verification.outlier_ratio == 0.0
    assert verification.drifts.moved.pooled < 0.5 * verification.drifts.zeroed.pooled  # the register is needed
    assert min(draw.outlier_ratio for draw in verification.controls.random) > 0.9  # other rows take nothing away
    assert "spikes of the position table" in result.meaning


def test_neurons_and_spikes_are_found_together():
    known, result = _found("siglip", "planted and table spikes")
    assert result.verdict == "fixed"
    assert set(result.fixed_positions) == set(known.fixed_positions)
    assert {(neuron.layer, neuron.neuron) for neuron in result.register_neurons} == known.planted_pairs


@pytest.mark.parametrize("family", ["siglip", "dinov3"])
def test_neurons_that_write_at_fixed_places_are_register_neurons(family):
    known, result = _found(family, "fixed positions")
    assert result.verdict == "fixed"
    assert result.fixed_positions == ()
    assert {(neuron.layer, neuron.neuron) for neuron in result.register_neurons} == known.planted_pairs


@pytest.mark.parametrize(
    ("family", "kind", "why"),
    [
        ("siglip", "needed table spikes", "These rows of the position table carry features"),
        ("siglip2", "needed table spikes", "These rows of the position table carry features"),
        ("vit", "attention at fixed positions", "outliers after / before is 1"),
    ],
)
def test_what_costs_the_feature_or_takes_nothing_away_is_unresolved_and_says_why(family, kind, why):
    _, result = _found(family, kind)
    assert result.verdict == result.headline == "unresolved"
    assert result.fixed_positions == ()
    assert any("at the same places in every image" in reason for reason in result.reasons)
    assert any(reason.startswith("With those counted: ") and why in reason for reason in result.reasons)


def test_a_result_keeps_its_spikes_in_its_files_and_brings_them_to_a_model(tmp_path):
    known, result = _found("dinov2", "table spikes")
    result.save(tmp_path)
    read = CalibrationResult.load(tmp_path)
    assert read.fixed_positions == result.fixed_positions
    assert read.norms.positions == result.norms.positions
    patched = add_test_time_registers(known.model, read)
    assert patched.config.fixed_positions == [list(place) for place in result.fixed_positions]
    pixel_values = known.sample[:2]
    with torch.no_grad(), patched.disable_test_time_registers():
        off = patched(pixel_values).last_hidden_state
    with torch.no_grad():
        base, on = known.model(pixel_values).last_hidden_state, patched(pixel_values).last_hidden_state
    assert torch.equal(off, base)
    assert not torch.allclose(on, base, atol=1e-3)


def test_places_that_are_given_come_before_those_of_a_result():
    known, result = _found("dinov2", "table spikes")
    assert add_test_time_registers(known.model, result, fixed_positions=[(0, 2)]).config.fixed_positions == [[0, 2]]
    assert add_test_time_registers(known.model, result, fixed_positions=[]).config.fixed_positions == []


def test_where_no_row_can_be_taken_away_the_reason_is_told_and_nothing_is_fixed(monkeypatch):
    known, result = _found("siglip", "table spikes")
    monkeypatch.setattr(finding, "why_not_taken", lambda trunk: "it is fitted otherwise")
    refused = calibrate(known.model, synthetic_images(COUNT, seed=20_000), config=CONFIG)
    assert (refused.verdict, refused.fixed_positions) == ("unresolved", ())
    ending = "cannot be taken away in this family: it is fitted otherwise."
    assert any(reason.endswith(ending) for reason in refused.reasons)
    assert result.verdict == "fixed"


def test_rows_of_an_evaluation_take_the_same_or_other_rows_of_the_table():
    known, result = _found("dinov2", "table spikes")
    patched, pixel_values = add_test_time_registers(known.model, result), known.sample[:2]
    rows = model_rows(patched)
    with torch.no_grad():
        found = {name: model(pixel_values).last_hidden_state for name, model in rows.items()}
        base, own = known.model(pixel_values).last_hidden_state, patched(pixel_values).last_hidden_state
    assert torch.equal(found["base"], base)
    assert torch.equal(found["patched"], own)
    zeroed = rows["zeroed, not moved"]
    assert zeroed.config.fixed_positions == []
    tables = [position_table(model).detach() for model in (zeroed.get_submodule(zeroed.trunk_name), known.model)]
    assert float(tables[0].norm(dim=2).max()) < 0.5 * float(tables[1].norm(dim=2).max())
    places = rows["random neurons"].config.fixed_positions
    assert len(places) == 3
    assert not {tuple(place) for place in places} & set(result.fixed_positions)


def test_the_switch_shows_spikes_alone_taken_away_and_their_controls():
    known, result = _found("siglip", "table spikes")
    patched = add_test_time_registers(known.model, result)
    layer, threshold = result.norms.detection_layer, result.norms.norm_threshold
    switch = record_switch(known.model, patched, known.sample[:2], None, detection_layer=layer)
    assert switch.states == tuple(State(kind, 0) for kind in ("base", "zeroed", "random", "moved"))
    assert switch.num_spikes == 3
    for photograph in switch.photographs:
        assert (photograph.norms_SLhw > threshold).flatten(1).sum(1).tolist() == [3, 0, 3, 0]
    data = switch_data(switch, threshold)
    assert (data["counts"], data["spikes"]) == ([0, 0], 3)


def test_the_switch_of_neurons_and_spikes_takes_spikes_in_every_patched_state(tmp_path):
    known, result = _found("siglip", "planted and table spikes")
    patched = add_test_time_registers(known.model, result)
    layer = result.norms.detection_layer
    switch = record_switch(known.model, patched, known.sample[:1], None, detection_layer=layer)
    (photograph,), count = switch.photographs, len(result.register_neurons)
    assert [state.num_neurons for state in switch.states] == [0, count, count, *range(1, count + 1)]
    spikes = [int(place) for place in _index(known)]
    norms_SN = photograph.norms_SLhw[:, 0].flatten(1)
    is_large_S = norms_SN[:, spikes].min(1).values > result.norms.norm_threshold
    assert is_large_S.tolist() == [True, False, True, *[False] * count]
    save_switch(switch, tmp_path)
    assert load_switch(tmp_path).num_spikes == switch.num_spikes


def _index(known):
    side = position_table(known.model).shape[1]
    return [row * side + column for row, column in known.fixed_positions]


def test_a_checkpoint_with_spikes_alone_is_verified_by_its_calibration_or_without():
    known, result = _found("dinov2", "table spikes")
    patched, images = add_test_time_registers(known.model, result), synthetic_images(COUNT, seed=77)
    for calibration in (result, None):
        found = verify_patched(patched, images, calibration=calibration, config=CONFIG)
        assert found.verdict == "fixed"
        assert found.verification.outlier_ratio == 0.0


def test_the_control_has_no_spikes_and_no_start_and_leaves_the_model_alone():
    known = make_known_model("siglip", "table spikes", trigger="bright", seed=1)
    tower, before = VisionTower.of(known.model), position_table(known.model).detach().clone()
    ordinary = without_spikes(tower, known.fixed_positions)
    norms = position_table(ordinary.trunk).detach().norm(dim=2)
    assert float(norms.max()) < 2 * float(norms.median())
    assert torch.equal(position_table(known.model), before)
    assert without_spikes(tower, ()) is tower


def test_random_rows_are_as_many_others():
    known = make_known_model("siglip", "table spikes", trigger="bright", seed=1)
    tower = VisionTower.of(known.model)
    drawn = random_rows(tower, known.fixed_positions, draws=20, seed=0)
    assert drawn == random_rows(tower, known.fixed_positions, draws=20, seed=0)
    assert len(set(drawn)) > 15
    for rows in drawn:
        assert len(set(rows)) == 3
        assert not set(rows) & set(known.fixed_positions)
    assert random_rows(tower, (), draws=3, seed=0) == [(), (), ()]


def test_spikes_are_taken_by_one_intervention_and_not_by_its_sibling():
    known = make_known_model("siglip", "table spikes", trigger="bright", seed=1)
    batch = Batch(known.sample[:8], tuple(range(8)))
    rule = OutlierRule(9, known.norm_threshold, counts_fixed=True)
    plain = Intervention(VisionTower.to_measure(known.model), [batch], rule)
    taking = plain.taking(known.fixed_positions)
    assert plain.outcome([]).outlier_ratio == pytest.approx(1.0)
    assert taking.outcome([]).outlier_ratio == 0.0
    assert plain.outcome([]).outlier_ratio == pytest.approx(1.0)
    assert taking.before is plain.before


def test_fixed_positions_that_count_are_never_content():
    content = Content(embedding_median=1.0, detection_median=1.0)
    above = torch.tensor([[True, True, False]])
    norms = torch.tensor([[20.0, 20.0, 1.0]])
    leaving = OutlierRule(0, 5.0, fixed_positions=(0,), content=content)
    counting = dataclasses.replace(leaving, counts_fixed=True)
    assert leaving.without_exceptions(above, norms, norms).tolist() == [[False, False, False]]
    assert counting.without_exceptions(above, norms, norms).tolist() == [[True, False, False]]
    assert (leaving.left_out, counting.left_out) == ((0,), ())
