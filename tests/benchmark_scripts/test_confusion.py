"""The confusion table counts every planted model, goes on where it ended, and survives what fails."""

import json
from dataclasses import asdict, replace

import pytest
import typer
from benchmarks import confusion, confusion_models
from benchmarks.confusion import Plan, confusion_table
from benchmarks.confusion_outcomes import FAILED, GROWN, LEFT_OUT, UNWIRED, Cell, Outcome, Unjudged
from benchmarks.confusion_summary import summary, table
from benchmarks.planted_kinds import KINDS, UNSEEN_KINDS, triggers_of


def _cell(kind="planted", seed=0):
    return Cell("clip", kind, "bright", seed)


def _outcome(cell, *, got="fixed", recovery="exact"):
    return Outcome(
        **asdict(cell),
        expected=("fixed",),
        got=got,
        recovery=recovery,
        planted=2,
        found=2,
        foreign=0,
        outliers_left=0.0,
        similarity=1.0,
        norm_threshold=9.0,
        known_threshold=8.0,
        missing=(),
        extra=(),
        seconds=3.0,
    )


def _unjudged(cell, why):
    return Unjudged(**asdict(cell), why=why, reason="because")


def _confusion_table(tmp_path, *, seeds):
    confusion_table(
        seeds=seeds, family=["clip"], kind=["nothing"], num_images=4, processes=1, lines=tmp_path / "l", as_json=True
    )


def test_summary_counts_models_that_could_not_be_judged():
    seen = [_outcome(_cell()), _outcome(_cell(seed=1), got="clean", recovery="none")]
    seen += [_unjudged(_cell(seed=2), LEFT_OUT), _unjudged(_cell(seed=3), FAILED), _unjudged(_cell("dense"), FAILED)]
    planted, dense = summary(seen)
    assert (planted["models"], planted["right"]) == (4, 1)
    assert planted["unjudged"] == {LEFT_OUT: 1, FAILED: 1}
    assert planted["wrong"] == ["clip/bright/1: clean, none"]
    assert planted["not judged"] == ["clip/bright/2: left out, because", "clip/bright/3: failed, because"]
    assert (dense["models"], dense["right"]) == (1, 0)
    heads, _, row, _ = table(seen).splitlines()
    cells = dict(zip(heads.split(" | "), row.split(" | "), strict=True))
    assert (cells["left out"], cells["failed"]) == ("1", "1")


def test_a_planted_model_that_is_not_what_it_should_be_is_left_out(monkeypatch):
    def refuse(known):
        raise ValueError("no outliers")

    monkeypatch.setattr(confusion_models, "check_truth", refuse)
    cell = _cell("nothing")
    assert confusion._run(cell, [""], Plan(4, 1)) == [Unjudged(**asdict(cell), why=LEFT_OUT, reason="no outliers")]


def test_a_failure_leaves_the_other_models_alone(monkeypatch):
    monkeypatch.setitem(KINDS, "unmade", KINDS["nothing"])  # the process that is started does not know it
    cells = [_cell("unmade"), _cell("unmade", seed=1)]
    found = list(confusion._judged(dict.fromkeys(cells, ("",)), Plan(4, 1)))
    assert {(one.seed, one.why) for one in found} == {(0, FAILED), (1, FAILED)}
    assert all("unmade" in one.reason for one in found)


def test_a_run_goes_on_where_its_lines_end_and_tries_failures_again(tmp_path, monkeypatch, capsys):
    cells = [_cell("nothing", seed) for seed in range(4)]
    first = [_outcome(cells[0]), _unjudged(cells[1], LEFT_OUT), _unjudged(cells[2], FAILED)]
    text = "".join(json.dumps(asdict(one)) + "\n" for one in first)
    (tmp_path / "l").write_text(text + '{"family": "cl')
    asked = []

    def judge_all(left, plan):
        asked.extend(left)
        return map(_outcome, left)

    monkeypatch.setattr(confusion, "_judged", judge_all)
    _confusion_table(tmp_path, seeds=4)
    assert asked == cells[2:]
    (entry,) = json.loads(capsys.readouterr().out)
    assert (entry["models"], entry["right"], entry["unjudged"]) == (4, 3, {LEFT_OUT: 1})
    _confusion_table(tmp_path, seeds=4)
    assert asked == cells[2:]


def test_progress_says_how_long_all_models_take(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(confusion, "_judged", lambda left, *_: (_unjudged(cell, FAILED) for cell in left))
    _confusion_table(tmp_path, seeds=2)
    error = capsys.readouterr().err
    assert "failed: nothing, clip/bright/0: because" in error
    assert "2 of 2 in " in error
    assert "CPU-hours for all" in error


def test_an_interrupted_run_prints_the_table_of_what_was_done_and_keeps_its_lines(tmp_path, monkeypatch, capsys):
    def judge_one(left, plan):
        yield _outcome(next(iter(left)))
        raise KeyboardInterrupt

    monkeypatch.setattr(confusion, "_judged", judge_one)
    _confusion_table(tmp_path, seeds=3)
    shown = capsys.readouterr()
    (entry,) = json.loads(shown.out)
    assert entry["models"] == len((tmp_path / "l").read_text().splitlines()) == 1
    assert "interrupted after 1 of 3 results" in shown.err


def test_the_summary_counts_in_how_many_models_constant_mode_keeps_the_bounds():
    found = [replace(_outcome(_cell(seed=seed)), constant_mode=kept) for seed, kept in enumerate((True, False, None))]
    (entry,) = summary(found)
    assert entry["constant mode"] == "1 of 2"
    assert "| 1 of 2 |" in table(found)
    assert summary(found[2:])[0]["constant mode"] == ""


def test_models_of_other_seeds_are_made_on_demand(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(confusion, "_judged", lambda left, *_: asked.extend(left) or map(_outcome, left))
    confusion_table(seeds=2, first_seed=10, family=["clip"], kind=["nothing"], processes=1, as_json=True)
    assert [cell.seed for cell in asked] == [10, 11]


def test_a_fixed_model_is_right_only_with_planted_neurons_that_are_enough():
    assert _outcome(_cell()).is_right
    assert not _outcome(_cell(), recovery="foreign").is_right
    assert not _outcome(_cell(), recovery="too few").is_right
    assert _outcome(Cell(GROWN, "mlps", "", 0), recovery=UNWIRED).is_right  # nobody knows its neurons


def test_long_ones_begin_first_and_a_run_that_is_cut_off_has_whole_seeds(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(confusion, "_judged", lambda left, *_: asked.extend(left) or map(_outcome, left))
    confusion_table(seeds=2, family=["clip"], kind=[], num_images=4, processes=1, lines=None, as_json=True)
    of_first_seed = [cell for cell in asked if cell.seed == 0]
    assert asked[: len(of_first_seed)] == of_first_seed
    assert {cell.kind for cell in of_first_seed} == {kind for kind in KINDS if triggers_of("clip", kind)}
    assert "dense" in [cell.kind for cell in of_first_seed[:5]]
    assert len(set(asked)) == len(asked) == 2 * len(of_first_seed)


def test_kinds_that_nothing_was_set_on_run_on_demand_alone(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(confusion, "_judged", lambda left, *_: asked.extend(left) or map(_outcome, left))
    options = {"seeds": 1, "family": ["clip"], "num_images": 4, "processes": 1, "as_json": True}
    confusion_table(**options)
    assert {cell.kind for cell in asked}.isdisjoint(UNSEEN_KINDS)
    asked.clear()
    confusion_table(**options, unseen=True)
    assert {cell.kind for cell in asked} == set(UNSEEN_KINDS)
    with pytest.raises(typer.BadParameter, match="counted is one that nothing was set on: it needs --unseen"):
        confusion_table(**options, kind=["counted"])
    with pytest.raises(typer.BadParameter, match="planted is one that everything was set on"):
        confusion_table(**options, kind=["planted"], unseen=True)
