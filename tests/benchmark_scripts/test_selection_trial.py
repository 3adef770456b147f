"""Trials of the selection: what is taken out is out, what is remembered changes nothing, and results are paired."""

import dataclasses
import json
import math
from collections import Counter

import pytest
import torch
import typer
from benchmarks import confusion
from benchmarks.confusion import Plan, confusion_table, tenth_of
from benchmarks.confusion_models import GrownModels
from benchmarks.confusion_outcomes import FAILED, GROWN, Cell, Outcome, Unjudged
from benchmarks.grown_variants import CHECKPOINT, VARIANTS
from benchmarks.planted_kinds import FAMILIES, KINDS, make_known_model, triggers_of
from benchmarks.planted_truth import graded_model
from benchmarks.selection_steps import STEPS, Settings, settings_without, steps_of
from benchmarks.selection_trial import Memory, calibrated_without
from benchmarks.trial_summary import trial_summary, trial_table
from PIL import Image

from ttreg_hf.calibration.calibration_run import calibrate
from ttreg_hf.calibration.config import CalibrationConfig, Constants
from ttreg_hf.calibration.inputs import Inputs
from ttreg_hf.images.data_sets import NamedImages
from ttreg_hf.planted import synthetic_images

CONFIG = CalibrationConfig(num_images=48)


def _outcome(cell, *, without="", got="fixed", recovery="exact", seconds=3.0, found=2):
    return Outcome(
        **dataclasses.asdict(cell),
        expected=("fixed",),
        got=got,
        recovery=recovery,
        planted=2,
        found=found,
        foreign=0,
        outliers_left=0.0,
        similarity=1.0,
        norm_threshold=9.0,
        known_threshold=8.0,
        missing=(),
        extra=(),
        seconds=seconds,
        without=without,
    )


def _cell(seed=0, kind="planted"):
    return Cell("clip", kind, "bright", seed)


@pytest.mark.parametrize("step", STEPS)
def test_every_step_changes_just_the_settings_that_it_names(step):
    before, after = (dataclasses.asdict(settings_without(name, CONFIG)) for name in ("", step))

    def flat(record, path=""):
        for name, value in record.items():
            yield from flat(value, f"{path}{name}.") if isinstance(value, dict) else [(path + name, value)]

    old, new = dict(flat(before)), dict(flat(after))
    assert {path for path in old if old[path] != new[path]} == set(STEPS[step])
    assert settings_without("", CONFIG) == Settings(config=CONFIG)


def test_every_constant_can_be_halved_and_doubled():
    def numbers(record, path):
        for field in dataclasses.fields(record):
            value, name = getattr(record, field.name), f"{path}.{field.name}"
            yield from numbers(value, name) if dataclasses.is_dataclass(value) else [name]

    names = list(numbers(Constants(), "constants"))
    assert len(names) > 20
    for word in ("halved", "doubled"):
        varied = [path for step, changes in STEPS.items() if step.endswith(word) for path in changes]
        assert sorted(varied) == sorted([*names, "config.budget"])
    assert STEPS["populations.min_ratio halved"] == {"constants.inspection.populations.min_ratio": 0.75}
    assert STEPS["positions.min_ratio doubled"] == {"constants.inspection.positions.min_ratio": 3.0}
    assert STEPS["max_share doubled"] == {"constants.inspection.populations.max_share": 0.6}
    assert STEPS["end_share doubled"] == {"constants.inspection.end_share": 1.0}  # a share stays one
    assert STEPS["most_neurons halved"] == {"constants.selection.most_neurons": 512}


def test_groups_stand_for_their_steps():
    assert steps_of(["dense neurons", "all"])[0] == "dense neurons"
    assert set(steps_of(["rules", "constants"])) == set(STEPS) == set(steps_of(["all"]))
    assert "min_evidence halved" in steps_of(["populations"])
    assert "gone halved" not in steps_of(["populations"])


@pytest.fixture(scope="module")
def opened():
    known = graded_model("dinov2", trigger="bright", seed=7, layout={3: 3})
    images = NamedImages.of(synthetic_images(CONFIG.num_images, seed=5), None)
    return known, images, Inputs.open(known.model, images, CONFIG)


def _said(result):
    """All that a result says, but when it was made."""
    values = {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}
    del values["scores"], values["provenance"]
    values["constants"] = None if values["constants"] is None else values["constants"].tolist()
    return json.dumps(values, default=dataclasses.asdict, sort_keys=True)


def test_what_is_remembered_changes_no_result(opened):
    known, images, inputs = opened
    whole = calibrate(known.model, images, config=CONFIG)
    memory, found = Memory(), []
    for step in ("", "half excess", "costly neurons", ""):
        found.append(calibrated_without(step, inputs, images.source, memory)[0])
    first, _, costly, again = found
    assert _said(first) == _said(whole) == _said(again)
    assert torch.equal(first.scores, whole.scores)
    alone, _ = calibrated_without("costly neurons", inputs, images.source, Memory())
    assert _said(alone) == _said(costly)


def test_a_model_whose_spikes_alone_are_taken_away_is_tried_without_any_neuron():
    """Its images are run with no neuron moved."""
    known = make_known_model("vit_msn", "table spikes", trigger="bright", seed=0)
    images = NamedImages.of(synthetic_images(CONFIG.num_images, seed=5), None)
    found, _ = calibrated_without("", Inputs.open(known.model, images, CONFIG), images.source, Memory())
    whole = calibrate(known.model, images, config=CONFIG)
    assert (found.verdict, found.fixed_positions) == (whole.verdict, whole.fixed_positions)
    assert found.fixed_positions
    assert not found.register_neurons


def test_what_is_remembered_is_not_computed_again_and_timed_as_if_it_were(opened):
    _, images, inputs = opened
    memory = Memory()
    _, first = calibrated_without("", inputs, images.source, memory)
    saved = memory.saved
    _, second = calibrated_without("", inputs, images.source, memory)
    assert memory.saved - saved > 0.5 * first
    assert 0.5 * first < second < 2 * first


def test_a_step_that_is_taken_out_leaves_no_trace(opened):
    _, images, inputs = opened
    memory = Memory()
    whole, without = (calibrated_without(step, inputs, images.source, memory)[0] for step in ("", "two image sets"))
    stages = [{step.stage for step in result.selections[0].path} for result in (whole, without)]
    assert "elsewhere" in stages[0]
    assert "elsewhere" not in stages[1]
    later, _ = calibrated_without("later blocks", inputs, images.source, memory)
    bounds = {check.name: check.bound for check in later.verification.checks}
    assert bounds["patches in a second population at a later block / outliers before"] == math.inf
    every_layer, _ = calibrated_without("first layer", inputs, images.source, memory)
    assert every_layer.config.first_layer == 0 < whole.config.first_layer


def test_tenths_are_of_each_kind_and_share_no_model():
    cells = [
        Cell(family, kind, trigger, seed)
        for seed in range(10)
        for kind in KINDS
        for family in FAMILIES
        for trigger in triggers_of(family, kind)
    ]
    tenths = [tenth_of(cells, part, 3) for part in range(1, 11)]
    assert sorted(str(cell) for tenth in tenths for cell in tenth) == sorted(map(str, cells))
    for tenth in tenths:
        counts, every = (Counter(cell.kind for cell in each) for each in (tenth, cells))
        assert all(abs(counts[kind] - every[kind] / 10) < 1 for kind in KINDS)
        assert {cell.kind for cell in tenth[: len(KINDS)]} == set(KINDS)  # one that is cut off is of all kinds
    assert tenth_of(cells, 1, 3) == tenths[0] != tenth_of(cells, 1, 4)


def test_the_summary_pairs_models_and_names_those_that_change():
    step = "dense neurons"
    judged = [_outcome(_cell(seed)) for seed in range(4)]
    judged += [
        _outcome(_cell(0), without=step, seconds=6.0),
        _outcome(_cell(1), without=step, got="unresolved", recovery="foreign"),
        _outcome(_cell(2), without=step, recovery="minimal", found=1),
        Unjudged(**dataclasses.asdict(_cell(3)), why=FAILED, reason="because", without=step),
    ]
    (entry,) = trial_summary(judged)
    assert (entry["models"], entry["right"], entry["right, whole"]) == (3, 2, 3)
    assert (entry["exact"], entry["exact, whole"], entry["not judged"]) == (1, 3, 1)
    assert entry["worse"] == ["planted, clip/bright/1: fixed, exact, 2 of 2 -> unresolved, foreign, 2 of 2"]
    assert entry["better"] == []
    assert entry["other neurons"] == ["planted, clip/bright/2: fixed, exact, 2 of 2 -> fixed, minimal, 1 of 2"]
    assert (entry["seconds"], entry["seconds, whole"], entry["median ratio of seconds"]) == (12.0, 9.0, 1.0)
    heads, _, row, _, note = trial_table(judged).splitlines()
    assert heads.count("|") == row.count("|")
    assert note.startswith("- dense neurons, worse: planted, clip/bright/1")
    (other_way,) = trial_summary([dataclasses.replace(one, without="" if one.without else step) for one in judged])
    assert len(other_way["better"]) == 1


def test_a_trial_runs_the_whole_and_each_step_and_goes_on_where_its_lines_end(tmp_path, monkeypatch, capsys):
    asked = {}

    def judge(left, plan):
        asked.update(left)
        for cell, steps in left.items():
            yield from (_outcome(cell, without=step) for step in steps)

    monkeypatch.setattr(confusion, "_judged", judge)
    options = {"seeds": 1, "family": ["clip"], "kind": ["nothing"], "lines": tmp_path / "l", "as_json": True}
    confusion_table(**options, without=["dense neurons"])
    cell = _cell(kind="nothing")
    assert asked == {cell: ("", "dense neurons")}
    asked.clear()
    confusion_table(**options, without=["dense neurons", "gone halved"])
    assert asked == {cell: ("gone halved",)}
    capsys.readouterr()
    confusion_table(compare=[tmp_path / "l"], as_json=True)
    assert [(entry["without"], entry["models"]) for entry in json.loads(capsys.readouterr().out)] == [
        ("dense neurons", 1),
        ("gone halved", 1),
    ]
    confusion_table(without=["list"])
    assert capsys.readouterr().out.splitlines() == list(STEPS)


def test_a_step_that_fails_leaves_the_others_alone(monkeypatch, opened):
    known, images, _ = opened
    result = calibrate(known.model, images, config=CONFIG)

    def calibrated(step, *others):
        if step == "dense neurons":
            raise ValueError("nothing is left")
        return result, 1.0

    cell = _cell(kind="nothing")
    monkeypatch.setattr(confusion, "calibrated_without", calibrated)
    found = confusion._run(cell, ["", "dense neurons", "gone halved"], Plan(48, 1, trial=True))
    assert [type(one) for one in found] == [Outcome, Unjudged, Outcome]
    assert (found[1].without, found[1].why, found[1].reason) == (
        "dense neurons",
        FAILED,
        "ValueError: nothing is left",
    )


def test_grown_models_are_calibrated_on_their_photographs_and_know_their_verdict(tmp_path):
    model = graded_model("dinov2", trigger="bright", seed=7, layout={3: 2}).model
    model.save_pretrained(tmp_path / "out" / "attention-2" / CHECKPOINT)
    (tmp_path / "out" / "mlps-0").mkdir()  # growing it was not finished
    for place in range(2):
        path = tmp_path / "photographs" / "calibrate" / f"{place}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64), (90 * place,) * 3).save(path)
    grown = GrownModels(tmp_path / "out", tmp_path / "photographs", num_images=4, device="cpu")
    (cell,) = grown.cells()
    assert cell == Cell(GROWN, "attention", "", 2)
    subject = grown.subject(cell)
    assert subject.images.photographs == [0, 1, 0, 1]
    assert subject.images.images.shape[-1] == VARIANTS["attention"].image_size
    assert (subject.config.num_images, subject.config.seed) == (4, 2)
    result = calibrate(model, synthetic_images(24), config=CalibrationConfig(num_images=24, top_k=1))
    outcome = subject.judge(result, 2.0, "dense neurons")
    assert outcome.expected == VARIANTS["attention"].expected != VARIANTS["mlps"].expected
    assert (outcome.recovery, outcome.found, outcome.without) == ("unwired", 1, "dense neurons")


def test_grown_models_that_are_not_there_are_one_message(tmp_path):
    with pytest.raises(ValueError, match=r"Grown models are folders VARIANT-SEED/checkpoint, but .* holds none"):
        GrownModels(tmp_path, tmp_path, num_images=4, device="cpu").cells()
    with pytest.raises(typer.BadParameter, match="grown models are calibrated on --photographs"):
        confusion_table(seeds=1, grown=tmp_path)
