"""Whether calibration without any setting gets models right whose truth is known: the table, and what each step earns.

Run it through `scripts/confusion_table.py`.
"""

import hashlib
import itertools
import json
import multiprocessing
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.confusion_models import GrownModels, planted_subject
from benchmarks.confusion_outcomes import FAILED, GROWN, LEFT_OUT, Cell, Outcome, Unjudged, cell_of, read_lines
from benchmarks.confusion_summary import summary, table
from benchmarks.options import Device, one_of, place_of
from benchmarks.planted_kinds import FAMILIES, KINDS, UNSEEN_KINDS, triggers_of
from benchmarks.selection_steps import GROUPS, LIST, STEPS, steps_of
from benchmarks.selection_trial import Memory, calibrated_without
from benchmarks.trial_summary import trial_summary, trial_table
from ttreg_hf.calibration.calibration_run import calibrate
from ttreg_hf.calibration.inputs import Inputs

_LONGEST = ("dense", "hot neurons", "planted and fixed positions")  # no seed ends with one process at work on these
_PARTS = 10
Judged = Outcome | Unjudged


@dataclass(frozen=True)
class Plan:
    """How every model is calibrated.

    Args:
        num_images: for each calibration of a planted model.
        processes: that share the models, of one thread each.
        grown: grown models, if there are some.
        trial: whether steps are taken out; else there is one calibration a model, as everybody runs it.
    """

    num_images: int
    processes: int
    grown: GrownModels | None = None
    trial: bool = False


def confusion_table(
    seeds: Annotated[int, typer.Option(help="How many models of each sort.")] = 10,
    first_seed: Annotated[
        int, typer.Option(min=0, help="Of each sort. Those from 10 on were never used while rules were set.")
    ] = 0,
    family: Annotated[
        list[str], typer.Option(callback=one_of(*FAMILIES), help="May be given again; all by default.")
    ] = [],  # noqa: B006
    kind: Annotated[
        list[str],
        typer.Option(callback=one_of(*KINDS, *UNSEEN_KINDS), help="May be given again; all seen ones by default."),
    ] = [],  # noqa: B006
    unseen: Annotated[
        bool, typer.Option("--unseen", help=f"Kinds that nothing was set on: {', '.join(UNSEEN_KINDS)}.")
    ] = False,
    without: Annotated[
        list[str],
        typer.Option(
            callback=one_of(LIST, *GROUPS, *STEPS),
            help=f"Also without a step; may be given again. {LIST} prints them; {', '.join(GROUPS)} are many.",
        ),
    ] = [],  # noqa: B006
    tenth: Annotated[
        int | None, typer.Option(min=1, max=_PARTS, help="Only this tenth of the models, of each kind a tenth.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the tenths.")] = 0,
    grown: Annotated[Path | None, typer.Option(help="Folder of `scripts/grown_artifacts.py`: its models too.")] = None,
    photographs: Annotated[Path | None, typer.Option(help="That grown models are calibrated on.")] = None,
    device: Device = None,
    num_images: Annotated[int, typer.Option(help="For each calibration of a planted model.")] = 256,
    processes: Annotated[
        int, typer.Option("--processes", "-j", min=1, help="That share the models, of one thread each.")
    ] = 2,
    lines: Annotated[Path | None, typer.Option(help="JSON lines, one a result; a run goes on where they end.")] = None,
    compare: Annotated[
        list[Path], typer.Option(help="Run nothing; read these lines instead. May be given again.")
    ] = [],  # noqa: B006
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of the table.")] = False,
) -> None:
    """Calibrate models whose truth is known, and compare: with the truth, and without some step with the whole."""
    if LIST in without:
        typer.echo("\n".join(STEPS))
        return
    if compare:
        _print([found for path in compare for found in read_lines(path)], is_trial=True, as_json=as_json)
        return
    steps = ("", *steps_of(without))
    plan = Plan(num_images, processes, _grown_models(grown, photographs, device), trial=len(steps) > 1)
    wanted = _planted_cells(range(first_seed, first_seed + seeds), family or FAMILIES, _kinds(kind, unseen=unseen))
    if tenth is not None:
        wanted = tenth_of(wanted, tenth, seed)
    if plan.grown is not None:
        wanted = [*plan.grown.cells(), *wanted]
    _print(_run_all(wanted, steps, plan, lines), is_trial=plan.trial, as_json=as_json)


def tenth_of(cells: Sequence[Cell], tenth: int, seed: int) -> list[Cell]:
    """Of each kind one of ten parts, which a seeded hash draws; the kinds take turns, the longest first.

    Args:
        cells: of all models.
        tenth: from 1 to 10; no two tenths of a seed have a model in common.
        seed: of the hash.
    """

    def drawn(cell: Cell) -> bytes:
        return hashlib.sha256(f"{seed}:{cell.kind}:{cell.name}".encode()).digest()

    by_kind = itertools.groupby(sorted(cells, key=lambda cell: cell.kind), lambda cell: cell.kind)
    parts = [sorted(of_kind, key=drawn)[tenth - 1 :: _PARTS] for _, of_kind in by_kind]
    turns = [(turn, cell) for part in parts for turn, cell in enumerate(part)]
    return [cell for _, cell in sorted(turns, key=lambda each: (each[0], each[1].kind not in _LONGEST, each[1].kind))]


def _kinds(given: Sequence[str], *, unseen: bool) -> list[str]:
    """The kinds that are wanted; one that nothing was set on only on demand."""
    allowed = UNSEEN_KINDS if unseen else KINDS
    if hidden := [kind for kind in given if kind not in allowed]:
        what = "one that everything was set on" if unseen else "one that nothing was set on: it needs --unseen"
        raise typer.BadParameter(f"{hidden[0]} is {what}.")
    return sorted(given or allowed, key=lambda name: name not in _LONGEST)


def _planted_cells(seeds: Iterable[int], families: Iterable[str], kinds: Sequence[str]) -> list[Cell]:
    families = tuple(families)
    return [
        Cell(of_family, of_kind, trigger, seed)
        for seed in seeds
        for of_kind in kinds
        for of_family in families
        for trigger in triggers_of(of_family, of_kind)
    ]


def _grown_models(folder: Path | None, photographs: Path | None, device: str | None) -> GrownModels | None:
    if folder is None:
        return None
    if photographs is None:
        raise typer.BadParameter("grown models are calibrated on --photographs; give their folder.")
    return GrownModels(folder, photographs, num_images=300, device=str(place_of(device)))


def _run_all(wanted: Sequence[Cell], steps: Sequence[str], plan: Plan, lines: Path | None) -> list[Judged]:
    """What is done already, and what is left of it; each result is a line as soon as it is there."""
    done = {(cell_of(found), found.without): found for found in _read(lines)}
    seen = [done[cell, step] for step in steps for cell in wanted if (cell, step) in done]
    left = {cell: tuple(step for step in steps if (cell, step) not in done) for cell in wanted}
    left = {cell: missing for cell, missing in left.items() if missing}
    try:
        for found in _with_progress(_judged(left, plan), sum(map(len, left.values())), plan.processes):
            seen.append(found)
            if lines is not None:
                with lines.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(found)) + "\n")
    except KeyboardInterrupt:
        typer.echo(f"\ninterrupted after {len(seen)} of {len(wanted) * len(steps)} results", err=True)
    return seen


def _read(lines: Path | None) -> list[Judged]:
    return read_lines(lines) if lines is not None and lines.exists() else []


def _print(seen: Sequence[Judged], *, is_trial: bool, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(trial_summary(seen) if is_trial else summary(seen), indent=2))
    else:
        typer.echo(trial_table(seen) if is_trial else table(seen))


def _with_progress(judged: Iterable[Judged], total: int, processes: int) -> Iterator[Judged]:
    """The same, and says how far it is, how long all take, and what could not be judged."""
    start = time.perf_counter()
    for count, found in enumerate(judged, 1):
        yield found
        minutes = (time.perf_counter() - start) / 60
        if isinstance(found, Unjudged):
            without = f" without {found.without}" if found.without else ""
            typer.echo(f"\r{found.why}: {found.kind}, {found.name}{without}: {found.reason}", err=True)
        typer.echo(
            f"\r{count} of {total} in {minutes:.1f} min, about {minutes * (total / count - 1):.1f} more; "
            f"{minutes * processes * total / count / 60:.2f} CPU-hours for all  ",
            err=True,
            nl=count == total,
        )


def _judged(steps_of_cells: Mapping[Cell, tuple[str, ...]], plan: Plan) -> Iterator[Judged]:
    """As they come; each of the cells once, whatever happens to it. Ended early, no more of them begin."""
    if not steps_of_cells:
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(plan.processes, context, initializer=torch.set_num_threads, initargs=(1,))
    try:
        running = {pool.submit(_run, cell, steps, plan): cell for cell, steps in steps_of_cells.items()}
        for future in as_completed(running):
            error, cell = future.exception(), running[future]
            if error is None:
                yield from future.result()
            else:  # the other processes go on; all that is left fails if one was killed, and can be run again
                yield from _unjudged(cell, steps_of_cells[cell], FAILED, f"{type(error).__name__}: {error}")
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _run(cell: Cell, steps: Sequence[str], plan: Plan) -> list[Judged]:
    """The outcomes without each step; or, of a planted model that is not what it should be, why it would mislead."""
    if cell.family == GROWN:
        assert plan.grown is not None
        subject = plan.grown.subject(cell)
    else:
        try:
            subject = planted_subject(cell, plan.num_images)
        except ValueError as error:
            return _unjudged(cell, steps, LEFT_OUT, str(error))
    if not plan.trial:
        start = time.perf_counter()
        result = calibrate(subject.model, subject.images, config=subject.config)
        return [subject.judge(result, time.perf_counter() - start, "")]
    inputs, memory = Inputs.open(subject.model, subject.images, subject.config), Memory()
    found: list[Judged] = []
    for step in steps:
        try:
            result, seconds = calibrated_without(step, inputs, subject.images.source, memory)
            found.append(subject.judge(result, seconds, step))
        except (ValueError, RuntimeError) as error:  # what is left of a calibration may not work at all
            found += _unjudged(cell, [step], FAILED, f"{type(error).__name__}: {error}")
    return found


def _unjudged(cell: Cell, steps: Sequence[str], why: str, reason: str) -> list[Judged]:
    return [Unjudged(**asdict(cell), why=why, reason=reason, without=step) for step in steps]


def main() -> None:
    """The command line of `scripts/confusion_table.py`."""
    typer.run(confusion_table)
