"""A result and its two files: whole, or as they were."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ttreg_hf.calibration.attention import MapChanges
from ttreg_hf.calibration.candidates import Candidate
from ttreg_hf.calibration.config import CalibrationConfig
from ttreg_hf.calibration.controls import Controls, NeuronEffect
from ttreg_hf.calibration.convergence import Convergence
from ttreg_hf.calibration.minimal_set import Selection, SelectionStep
from ttreg_hf.calibration.norms import NormStatistics, norm_report
from ttreg_hf.calibration.outliers import Content, OutlierRule
from ttreg_hf.calibration.rechecking import _rule
from ttreg_hf.calibration.result import (
    JSON_FILE,
    TENSOR_FILE,
    CalibrationResult,
    Provenance,
)
from ttreg_hf.calibration.trial import Outcome
from ttreg_hf.calibration.verification import GateCheck, Verification
from ttreg_hf.register_neuron import RegisterNeuron


def _verification() -> Verification:
    return Verification(
        num_images=2,
        in_sample=True,
        outlier_fraction_before=0.25,
        outlier_fraction_after=0.0,
        outlier_ratio_interval=(0.0, 0.0),
        max_norm_before=(1.0, 9.0, 9.0),
        max_norm_after=(1.0, 1.0, 1.0),
        tail_before=(1.0, 9.0, 9.0),
        tail_after=(1.0, 1.0, 1.0),
        register_norm=9.0,
        feature_similarity=0.999,
        feature_similarity_interval=(0.998, 1.0),
        min_feature_similarity=0.99,
        maps=MapChanges(0.5, 0.1, 0.2, 0.9, 0.4, 0.99),
        controls=Controls(Outcome(0.1, 0.5), (Outcome(1.0, 1.0), Outcome(0.9, 1.0))),
        neurons=(NeuronEffect(1, 7, 0.9, 0.001, 0.0011), NeuronEffect(2, 0, 0.0, 0.0, None)),
        checks=(GateCheck("outliers after / before", 0.0, 0.1, "Try more."),),
    )


def _result(*, score: float = 0.1 + 0.2, versions: dict[str, object] | None = None) -> CalibrationResult:
    statistics = NormStatistics(3, torch.device("cpu"))
    statistics.add(torch.rand(3, 2, 4, generator=torch.Generator().manual_seed(0)) + 1)
    scores = torch.zeros(3, 8, dtype=torch.float64)
    scores[1, 7], scores[2, 0] = score, 1e-300  # digits and range that float32 does not have
    return CalibrationResult(
        register_neurons=(RegisterNeuron(1, 7, score), RegisterNeuron(2, 0, 1e-300)),
        scores=scores,
        verdict="fixed",
        norms=norm_report(statistics, 1, 1.5),
        verification=_verification(),
        shift_value="per_layer",
        reasons=("because",),
        selections=(
            Selection(
                (RegisterNeuron(1, 7, score),),
                "per_layer",
                Outcome(0.5, 1.0),
                Outcome(0.0, 0.9),
                (SelectionStep("grow", 1, 0.5, 1.0, kept=False),),
                images_run=7,
                within_budget=True,
            ),
        ),
        candidates=(Candidate(RegisterNeuron(1, 7, score), 0.5, 1.0, 0.75),),
        config=CalibrationConfig(num_images=2, norm_threshold=1.5, detection_layer=1, last_layer=2, top_k=2),
        chosen=("detection_layer",),
        convergence=Convergence(50, (16, 20), (0.5, 1.0), (0.25, 0.75)),
        provenance=Provenance(
            model="org/näme",
            revision=None,
            model_class="Dinov2Model",
            images="photos",
            num_images=4,
            images_scored=2,
            images_with_outliers=1,
            bad_images=("a.png", "b.png"),
            image_size=(14, 28),
            processes=2,
            dtype="bfloat16",
            versions=versions or {"torch": "2"},
            created="2026-01-01",
        ),
    )


def _assert_equal(one: CalibrationResult, other: CalibrationResult) -> None:
    for field in dataclasses.fields(CalibrationResult):
        found, expected = getattr(one, field.name), getattr(other, field.name)
        assert torch.equal(found, expected) if field.name == "scores" else found == expected, field.name
    assert one.scores.dtype == torch.float64


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_is_saved_is_loaded(tmp_path):
    _result().save(tmp_path / "new" / "folder")
    assert sorted(_files(tmp_path / "new" / "folder")) == [JSON_FILE, TENSOR_FILE]
    _assert_equal(CalibrationResult.load(str(tmp_path / "new" / "folder")), _result())


def test_a_clean_result_is_loaded_without_verification(tmp_path):
    clean = dataclasses.replace(_result(), register_neurons=(), verdict="clean", verification=None)
    clean.save(tmp_path)
    _assert_equal(CalibrationResult.load(tmp_path), clean)


def test_json_says_what_people_look_for(tmp_path):
    _result().save(tmp_path)
    fields = json.loads((tmp_path / JSON_FILE).read_text(encoding="utf-8"))
    assert fields["register_neurons"][0] == [1, 7, 0.1 + 0.2]
    assert (fields["verdict"], fields["format"], fields["config"]["top_k"]) == ("fixed", 2, 2)


def test_saving_again_replaces_both_files(tmp_path):
    _result(score=2.0).save(tmp_path)
    _result(score=3.0).save(tmp_path)
    _assert_equal(CalibrationResult.load(tmp_path), _result(score=3.0))


def test_a_json_that_cannot_be_written_leaves_the_old_files(tmp_path):
    _result(score=2.0).save(tmp_path)
    before = _files(tmp_path)
    with pytest.raises(TypeError, match="not JSON serializable"):
        _result(score=3.0, versions={"torch": object()}).save(tmp_path)
    assert _files(tmp_path) == before


def test_scores_that_cannot_be_written_leave_the_old_files(tmp_path):
    _result(score=2.0).save(tmp_path)
    before = _files(tmp_path)
    broken = dataclasses.replace(_result(score=3.0), scores=torch.zeros(2, 2).to_sparse())
    with pytest.raises((ValueError, RuntimeError, NotImplementedError)):
        broken.save(tmp_path)
    assert _files(tmp_path) == before


@pytest.mark.parametrize("name", [JSON_FILE, TENSOR_FILE])
def test_a_missing_file_is_named(tmp_path, name):
    _result().save(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"but {tmp_path} has no {name}\. Make one with `ttreg calibrate"):
        CalibrationResult.load(tmp_path)


@pytest.mark.parametrize("written", [1, None])
def test_another_format_is_refused(tmp_path, written):
    _result().save(tmp_path)
    fields = json.loads((tmp_path / JSON_FILE).read_text(encoding="utf-8"))
    (tmp_path / JSON_FILE).write_text(json.dumps(fields | {"format": written}), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"has format {written}, this version reads 2\. Calibrate again"):
        CalibrationResult.load(tmp_path)


RULE = OutlierRule(1, 1.5, fixed_positions=(0, 63), content=Content(0.1 + 0.2, 7.0, 0.5))


def test_exceptions_of_the_outlier_rule_are_kept_and_used_to_verify(tmp_path):
    """Not found again, from other images: inspecting would fail here."""
    dataclasses.replace(_result(), outlier_rule=RULE).save(tmp_path)
    loaded = CalibrationResult.load(tmp_path)
    assert loaded.outlier_rule == RULE
    assert _rule(SimpleNamespace(config=CalibrationConfig()), loaded) == RULE  # type: ignore[arg-type]


def test_files_without_the_outlier_rule_are_read(tmp_path):
    _result().save(tmp_path)
    fields = json.loads((tmp_path / JSON_FILE).read_text())
    del fields["outlier_rule"], fields["verification"]["later_outlier_fractions"]
    (tmp_path / JSON_FILE).write_text(json.dumps(fields))
    loaded = CalibrationResult.load(tmp_path)
    assert loaded.outlier_rule is None
    assert loaded.verification == _verification()
    rule = _rule(SimpleNamespace(config=CalibrationConfig()), loaded)  # type: ignore[arg-type]
    assert rule == OutlierRule(1, 1.5)
