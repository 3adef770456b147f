"""What is measured of a grown model once it is calibrated: constant mode, quantisation; and that a run goes on."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from benchmarks import grown as command
from benchmarks import grown_steps
from benchmarks.grown_constants import CAPTION, OF_THIS_SIZE, constant_tables, constants
from benchmarks.grown_job import Job
from benchmarks.grown_judging import RESULT_FILE, models_of, rows_of
from benchmarks.grown_photographs import crops_to_report
from benchmarks.grown_quantisation import COLUMNS, ErrorsOfPhotographs, quantisation, quantisation_tables
from benchmarks.grown_steps import CONSTANTS, QUANTISATION, STEPS, Step, run_steps, write_tables
from benchmarks.grown_variants import VARIANTS

from ttreg_hf.calibration.calibration_result import CalibrationResult
from ttreg_hf.calibration.config import GateConfig
from ttreg_hf.calibration.constant_mode import measure_constants
from ttreg_hf.evaluation.evaluation_result import Evaluation
from ttreg_hf.evaluation.quantisation import ORDINARY, POOLED, UNQUANTISED
from ttreg_hf.evaluation.scores import Scores
from ttreg_hf.images.batch import Batch
from ttreg_hf.measuring.intervention import Intervention
from ttreg_hf.measuring.tower import VisionTower

from .conftest import SCHEMES, SIZE, TINY


@pytest.fixture
def job(done: Path, monkeypatch) -> Job:
    """Of the model that the command has been through."""
    monkeypatch.setitem(VARIANTS, "tiny", TINY)
    monkeypatch.setattr("benchmarks.grown_quantisation.SIMULATED", SCHEMES)
    return Job(done.parent / "base", done.parent / "photographs", None, done / "tiny-0", "tiny", 0, 2, 64, "cpu")


@pytest.fixture(scope="module")
def unresolved(done) -> CalibrationResult:
    return CalibrationResult.load(done / "tiny-0" / command.CALIBRATION)


@pytest.fixture(scope="module")
def with_constants(grown, unresolved) -> CalibrationResult:
    """The same calibration, had it been `fixed`."""
    tower = VisionTower.to_measure(grown.grown)
    parts = (grown.images[:24], grown.images[24:32], grown.images[32:48])
    places = (tuple(range(len(part))) for part in parts)
    average, choose, verify = (
        Intervention(tower, [Batch(*each)], unresolved.outlier_rule) for each in zip(parts, places, strict=True)
    )
    assert unresolved.shift_value == "per_neuron"
    mode, rows_LD = measure_constants(average, choose, verify, unresolved.register_neurons, gate=GateConfig())
    return dataclasses.replace(unresolved, verdict="fixed", constant_mode=mode, constants=rows_LD)


def _kept(folder: Path, step: Step, found) -> dict[str, Path]:
    (folder / step.file).write_text(json.dumps(found, allow_nan=False), encoding="utf-8")
    return {"tiny, 0": folder / step.file}


def test_constant_mode_is_held_against_the_token_at_both_sizes(job, grown, with_constants, tmp_path):
    found = constants(job, grown.original, grown.grown, with_constants)
    assert found["left_out"] == {}
    assert (found["calibrated_size"], found["other_size"]) == (SIZE, 168)
    rows = {row["model"]: row for row in found["rows"]}
    assert list(rows) == ["base", "patched", "constant mode", OF_THIS_SIZE]
    assert rows["constant mode"]["drifts"] != rows[OF_THIS_SIZE]["drifts"] != rows["patched"]["drifts"]
    models, _ = models_of(grown.grown, with_constants)
    own = rows_of(grown.original, models, with_constants, crops_to_report(job.photographs, SIZE, each=1))
    assert [row.model for row in own] == ["base", "patched", "constant mode", "zeroed, not moved", "random neurons"]
    judged = {"rows": [dataclasses.asdict(row) for row in own]}
    (tmp_path / RESULT_FILE).write_text(json.dumps(judged), encoding="utf-8")
    text = constant_tables(_kept(tmp_path, CONSTANTS, found))
    assert text.startswith(CAPTION)
    assert text.count(f"| tiny, 0 | {SIZE} | ") == 5
    assert text.count("| tiny, 0 | 168 | ") == 4
    controls = [line for line in text.splitlines() if line.startswith("| tiny, 0 | ") and line.count(" | ") == 4]
    assert len(controls) == 6
    token, constant = (row.drifts["ordinary patches"][0] for row in own[1:3])
    assert f"{constant:.2g} in constant mode, {token:.2g} with the token" in text
    assert f"{'at most' if constant <= token else 'more than'} the token's" in text


def test_outliers_that_are_gone_are_gone_at_every_block(job, grown, with_constants):
    models, _ = models_of(grown.grown, with_constants)
    crops = crops_to_report(job.photographs, SIZE, each=1)
    rows = {row.model: row for row in rows_of(grown.original, models, with_constants, crops)}
    assert rows["base"].largest_norm > 10
    assert max(rows[name].largest_norm for name in ("patched", "constant mode")) < 0.6 * rows["base"].largest_norm
    assert rows["random neurons"].largest_norm > 0.6 * rows["base"].largest_norm
    assert rows["base"].drifts["CLS"][0] == pytest.approx(0, abs=1e-9)


def test_without_constants_the_reason_is_kept_and_shown(done):
    found = json.loads((done / "tiny-0" / CONSTANTS.file).read_text(encoding="utf-8"))
    why = "the calibration, which is `unresolved`, measured no rows of constant mode"
    assert found["left_out"] == {"constant mode": why}
    assert [row["model"] for row in found["rows"]] == ["base", "patched"]
    judged = json.loads((done / "tiny-0" / RESULT_FILE).read_text(encoding="utf-8"))
    assert judged["left_out"] == found["left_out"]
    for name in (command.TABLE_FILE, CONSTANTS.table_file, QUANTISATION.table_file):
        assert f"tiny, 0: no row constant mode: {why}." in (done / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("step", [CONSTANTS, QUANTISATION])
def test_without_neurons_nothing_is_measured_and_it_is_said_why(step, job, grown, unresolved, tmp_path):
    clean = dataclasses.replace(unresolved, verdict="clean", register_neurons=())
    found = step.measured(job, grown.original, grown.grown, clean)
    assert not found.get("rows")
    assert found.get("evaluation") is None
    (tmp_path / RESULT_FILE).write_text(json.dumps({"rows": []}), encoding="utf-8")
    text = step.tables(_kept(tmp_path, step, found))
    assert "tiny, 0: no row constant mode: no register neurons were found, the verdict is `clean`." in text


def test_quantised_models_are_judged_scheme_by_scheme_over_photographs(job, grown, with_constants, tmp_path):
    found = quantisation(job, grown.original, grown.grown, with_constants)
    evaluation = Evaluation.from_dict(found["evaluation"])
    assert set(evaluation.rows) == set(COLUMNS)
    assert evaluation.num_images == 16  # photographs, not crops
    assert evaluation.num_training_images == 64
    text = quantisation_tables(_kept(tmp_path, QUANTISATION, found))
    assert text.index(POOLED) < text.index(ORDINARY) < text.index("Secondary")
    primary = [line.strip("| ").split(" | ") for line in text.split("Secondary")[0].splitlines()
               if line.startswith("| tiny, 0 |")]  # fmt: skip
    assert [line[1] for line in primary] == [UNQUANTISED, *SCHEMES] * 2
    for line in primary:
        judged = line[2 + len(COLUMNS) :]
        assert judged == [] if line[1] == UNQUANTISED else len(judged) == 2
    assert f"Simulated, by rounding: {'; '.join(SCHEMES)}. By torchao's kernels: none." in text


def test_crops_of_a_photograph_are_one_value(monkeypatch):
    of_crops = Scores("error", "", (0, 1, 2, 3), np.array([[1.0], [2.0], [3.0], [4.0]]), np.array([[1.0]] * 4))
    monkeypatch.setattr("benchmarks.grown_quantisation.QuantisationErrors.scores", lambda *given: [of_crops])
    (merged,) = ErrorsOfPhotographs(photographs=(5, 7, 5, 7)).scores(None, None, None)
    assert merged.places == (5, 7)
    assert merged.numerators_BC.tolist() == [[4.0], [6.0]]
    assert merged.denominators_BC.tolist() == [[2.0], [2.0]]
    assert merged.value() == of_crops.value()


def test_a_second_run_measures_nothing_again(job, grown, unresolved, monkeypatch):
    def measured(*given):
        pytest.fail("it is there")

    again = tuple(dataclasses.replace(step, measured=measured) for step in STEPS)
    monkeypatch.setattr(grown_steps, "STEPS", again)
    run_steps(job, grown.original, grown.grown, unresolved)


def test_a_step_that_fails_costs_only_its_own_rows(job, grown, unresolved, tmp_path, monkeypatch):
    def fails(*given):
        raise ValueError("no such thing")

    answers = {"bad": fails, "none": lambda *given: None, "good": lambda *given: {"a": 1}}
    monkeypatch.setattr(grown_steps, "STEPS", tuple(Step(name, each, str) for name, each in answers.items()))
    mine = dataclasses.replace(job, output=tmp_path)
    with pytest.raises(RuntimeError, match=r"^bad: ValueError: no such thing$"):
        run_steps(mine, grown.original, grown.grown, unresolved)
    assert json.loads((tmp_path / "good.json").read_text(encoding="utf-8")) == {"a": 1}
    write_tables([mine], tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["good.json", "good.md"]


def test_a_model_that_fails_leaves_the_others_their_rows(done, job, tmp_path, monkeypatch):
    """The other is judged, and the command says by its exit code that something is missing."""
    monkeypatch.setattr(command, "_run_all", lambda jobs, processes: False)
    with pytest.raises(command.typer.Exit):
        command.grown_artifacts(job.base, job.photographs, done, variant=["tiny"], seed=[0, 1], device="cpu")
    assert "| tiny | 0 |" in (done / command.TABLE_FILE).read_text(encoding="utf-8")
    assert "tiny, 0" in (done / CONSTANTS.table_file).read_text(encoding="utf-8")
