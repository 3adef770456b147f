"""A result and its two files: whole, or as they were."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ttreg_hf.calibration.calibration_result import JSON_FILE, TENSOR_FILE, CalibrationResult
from ttreg_hf.calibration.candidates import Candidate
from ttreg_hf.calibration.config import CalibrationConfig
from ttreg_hf.calibration.controls import Controls, NeuronEffect
from ttreg_hf.calibration.convergence import Convergence
from ttreg_hf.calibration.gate import Drift, Drifts, GateCheck
from ttreg_hf.calibration.provenance import Provenance
from ttreg_hf.calibration.selection import Selection, SelectionStep
from ttreg_hf.calibration.verdict import Look
from ttreg_hf.calibration.verification import Verification
from ttreg_hf.calibration.verification_run import _rule
from ttreg_hf.images.data_source import DataSource
from ttreg_hf.measuring.intervention import Outcome
from ttreg_hf.measuring.map_changes import MapChanges
from ttreg_hf.measuring.norms import NormStatistics, OutlierCounts, norm_report
from ttreg_hf.measuring.outlier_rule import Content, OutlierRule
from ttreg_hf.register_neuron import RegisterNeuron

DRIFT = Drift(0.1 + 0.2, (0.25, 0.5), 0.001, (0.0, 0.01))
RULE = OutlierRule(1, 1.5, fixed_positions=(0, 63), content=Content(0.1 + 0.2, 7.0, 0.5))


def _verification() -> Verification:
    return Verification(
        num_images=2,
        num_photographs=2,
        photographs_with_outliers=1,
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
        in_sample=True,
        places=(4, 7),
        drifts=Drifts(DRIFT, DRIFT, dataclasses.replace(DRIFT, pooled_interval=None, patches_interval=None), DRIFT),
        zeroing_passes=True,
        maps=MapChanges(0.5, 0.1, 0.2, 0.9, 0.4, 0.99),
        controls=Controls(Outcome(0.1, 0.5), (Outcome(1.0, 1.0), Outcome(0.9, 1.0))),
        neurons=(NeuronEffect(1, 7, 0.9, 0.001, 0.0011), NeuronEffect(2, 0, 0.0, 0.0, None)),
        later_outlier_fractions=(0.0, 0.125),
        layer_share=0.25,
        checks=(
            GateCheck("outliers after / before", 0.0, 0.1, "Try more.", (0.0, 0.05), by_upper_end=True),
            GateCheck("neurons moved / neurons of their layer", 0.25, 0.25, "A whole layer."),
        ),
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
        norms=norm_report(statistics, 1, 1.5, OutlierCounts(2, 1, (0.0, 0.25, 0.5), 1)),
        verification=_verification(),
        shift_value="per_layer",
        reasons=("because",),
        selections=(
            Selection(
                (RegisterNeuron(1, 7, score),),
                Outcome(0.5, 1.0),
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
            source=DataSource(repo_id="org/photos", split="train", seed=3),
            num_images=4,
            images_scored=2,
            images_with_outliers=1,
            bad_images=("a.png", "b.png"),
            image_size=(14, 28),
            processes=2,
            dtype="bfloat16",
            weights={"bfloat16": "0f" * 32},
            versions=versions or {"torch": "2"},
            created="2026-01-01",
        ),
        outlier_rule=RULE,
        looks=(Look((14, 28), 2, 1), Look((28, 28), 2, 0, 0.5)),
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
    assert (fields["verdict"], fields["format"], fields["config"]["top_k"]) == ("fixed", 6, 2)


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


@pytest.mark.parametrize("written", [1, 4, None])
def test_another_format_is_refused(tmp_path, written):
    _result().save(tmp_path)
    fields = json.loads((tmp_path / JSON_FILE).read_text(encoding="utf-8"))
    (tmp_path / JSON_FILE).write_text(json.dumps(fields | {"format": written}), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"has format {written}, this version reads 6\. Calibrate again"):
        CalibrationResult.load(tmp_path)


def test_exceptions_of_the_outlier_rule_are_kept_and_used_to_verify(tmp_path):
    """Not found again, from other images: inspecting would fail here."""
    _result().save(tmp_path)
    loaded = CalibrationResult.load(tmp_path)
    assert loaded.outlier_rule == RULE
    assert _rule(SimpleNamespace(config=CalibrationConfig()), loaded) == RULE  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["outlier_rule", "provenance", "verification", "looks"])
def test_a_file_that_lacks_a_field_is_refused(tmp_path, name):
    _result().save(tmp_path)
    fields = json.loads((tmp_path / JSON_FILE).read_text(encoding="utf-8"))
    del fields[name]
    (tmp_path / JSON_FILE).write_text(json.dumps(fields), encoding="utf-8")
    with pytest.raises(ValueError, match=name):
        CalibrationResult.load(tmp_path)


@pytest.mark.parametrize(
    ("part", "name", "value", "message"),
    [
        ("outlier_rule", "norm_threshold", "high", r"outlier_rule\.norm_threshold must be a number, got 'high'"),
        ("provenance", "image_size", [14], r"provenance\.image_size must be a list of 2, got \[14\]"),
        ("verification", "controls", None, r"verification\.controls must be an object, got None"),
        ("config", "top_k", 2.5, r"config\.top_k must be a whole number, got 2\.5"),
    ],
)
def test_a_value_of_another_type_is_refused_and_named(tmp_path, part, name, value, message):
    _result().save(tmp_path)
    fields = json.loads((tmp_path / JSON_FILE).read_text(encoding="utf-8"))
    fields[part][name] = value
    (tmp_path / JSON_FILE).write_text(json.dumps(fields), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        CalibrationResult.load(tmp_path)
