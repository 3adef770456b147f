"""Whether calibration without any setting gets planted models right: the table of verdicts and of neurons found.

Run it through `scripts/confusion_table.py`.
"""

import collections
import dataclasses
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.options import one_of
from benchmarks.planted_interventions import GONE, check_truth, effect_of
from benchmarks.planted_kinds import FAMILIES, KINDS, make_known_model, triggers_of
from benchmarks.planted_truth import KnownModel
from ttreg_hf.calibration.calibration_run import calibrate
from ttreg_hf.calibration.config import CalibrationConfig
from ttreg_hf.planted import synthetic_images

EXACT, MINIMAL, TOO_FEW, FOREIGN, NONE = "exact", "minimal", "too few", "foreign", "none"
LEFT_OUT, FAILED = "left out", "failed"
_LONGEST = ("dense", "hot neurons", "planted and fixed positions")  # no seed ends with one process at work on these


@dataclass(frozen=True)
class Cell:
    """One planted model."""

    family: str
    kind: str
    trigger: str
    seed: int


@dataclass(frozen=True)
class Outcome:
    """What calibration said about one planted model, beside the truth.

    Args:
        family, kind, trigger, seed: of the model.
        expected: the verdicts that are right.
        got: the verdict.
        recovery: `exact` (the planted neurons), `minimal` (some of them, and the outliers go), `too few` (some of
            them, and outliers stay), `foreign` (a neuron that was not planted) or `none`.
        planted, found, foreign: counts of neurons.
        outliers_left: after moving what was found, and what makes outliers at fixed positions: outliers after / before
            at any block; by the chosen threshold where that is 1 to 1.5 times the truth's.
        similarity: of the pooled feature then.
        norm_threshold: that calibration chose; the truth's lies between the populations.
        known_threshold: the truth's.
        missing, extra: neurons planted and not found, and found and not planted, ten at most.
        seconds: that calibration took.
    """

    family: str
    kind: str
    trigger: str
    seed: int
    expected: tuple[str, ...]
    got: str
    recovery: str
    planted: int
    found: int
    foreign: int
    outliers_left: float
    similarity: float
    norm_threshold: float | None
    known_threshold: float
    missing: tuple[tuple[int, int], ...]
    extra: tuple[tuple[int, int], ...]
    seconds: float

    @property
    def is_right(self) -> bool:
        """The verdict is right, and a model said to be fixed is fixed with planted neurons alone."""
        return self.got in self.expected and (self.got != "fixed" or self.recovery in (EXACT, MINIMAL))


@dataclass(frozen=True)
class Unjudged:
    """A planted model that says nothing about calibration; it is counted, so that no model goes missing.

    Args:
        family, kind, trigger, seed: of the model.
        why: `left out` (it is not what it should be) or `failed` (an error that nobody expected).
        reason: in words.
    """

    family: str
    kind: str
    trigger: str
    seed: int
    why: str
    reason: str


def confusion_table(
    seeds: Annotated[int, typer.Option(help="How many models of each sort.")] = 10,
    family: Annotated[
        list[str], typer.Option(callback=one_of(*FAMILIES), help="May be given again; all by default.")
    ] = [],  # noqa: B006
    kind: Annotated[list[str], typer.Option(callback=one_of(*KINDS), help="May be given again; all by default.")] = [],  # noqa: B006
    num_images: Annotated[int, typer.Option(help="For each calibration.")] = 256,
    processes: Annotated[
        int, typer.Option("--processes", "-j", min=1, help="That share the models, of one thread each.")
    ] = 2,
    lines: Annotated[Path | None, typer.Option(help="JSON lines, one a model; a run goes on where they end.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of the table.")] = False,
) -> None:
    """Calibrate models whose truth is known, and compare."""
    wanted = [
        Cell(of_family, of_kind, trigger, seed)
        for seed in range(seeds)
        for of_kind in sorted(kind or KINDS, key=lambda name: name not in _LONGEST)
        for of_family in family or FAMILIES
        for trigger in triggers_of(of_family, of_kind)
    ]
    done = _read(lines) if lines is not None and lines.exists() else {}
    seen = [done[cell] for cell in wanted if cell in done]
    left = [cell for cell in wanted if cell not in done]
    try:
        for found in _with_progress(_judged(left, num_images, processes), len(left), processes):
            seen.append(found)
            if lines is not None:
                with lines.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(found)) + "\n")
    except KeyboardInterrupt:
        typer.echo(f"\ninterrupted: the table is of {len(seen)} models of {len(wanted)}", err=True)
    typer.echo(json.dumps(summary(seen), indent=2) if as_json else table(seen))


def judge(known: KnownModel, cell: Cell, *, num_images: int) -> Outcome:
    """Calibrate a planted model on images that it was not tuned on, and hold the result against its truth."""
    images = synthetic_images(num_images, seed=20_000 + cell.seed)
    start = time.perf_counter()
    result = calibrate(known.model, images, config=CalibrationConfig(num_images=num_images))
    seconds = time.perf_counter() - start
    found = {(neuron.layer, neuron.neuron) for neuron in result.register_neurons}
    threshold = min(max(result.config.norm_threshold or 0.0, known.norm_threshold), 1.5 * known.norm_threshold)
    seen_as = dataclasses.replace(known, norm_threshold=threshold)  # a pruned set may leave what is just below its own
    effect = effect_of(seen_as, found, synthetic_images(num_images, seed=30_000 + cell.seed))
    missing, extra = sorted(known.planted_pairs - found), sorted(found - known.planted_pairs)
    return Outcome(
        **asdict(cell),
        expected=known.verdicts,
        got=result.verdict,
        recovery=_recovery(known, found, effect.outliers_left),
        planted=len(known.register_neurons),
        found=len(found),
        foreign=len(extra),
        outliers_left=effect.outliers_left,
        similarity=effect.similarity,
        norm_threshold=result.config.norm_threshold,
        known_threshold=known.norm_threshold,
        missing=tuple(missing[:10]),
        extra=tuple(extra[:10]),
        seconds=seconds,
    )


def summary(judged: Iterable[Outcome | Unjudged]) -> list[dict[str, Any]]:
    """One entry a kind: counts of verdicts and recoveries, and of what could not be judged, in the order of kinds."""
    by_kind = collections.defaultdict(list)
    for found in judged:
        by_kind[found.kind].append(found)
    return [_entry(kind, by_kind[kind]) for kind in KINDS if by_kind[kind]]


def _entry(kind: str, found: Sequence[Outcome | Unjudged]) -> dict[str, Any]:
    outcomes = [one for one in found if isinstance(one, Outcome)]
    unjudged = [one for one in found if isinstance(one, Unjudged)]
    return {
        "kind": kind,
        "models": len(found),
        "right": sum(outcome.is_right for outcome in outcomes),
        "expected": " or ".join(outcomes[0].expected) if outcomes else "",
        "verdicts": dict(collections.Counter(outcome.got for outcome in outcomes)),
        "recovery": dict(collections.Counter(outcome.recovery for outcome in outcomes)),
        "foreign neurons": sum(outcome.foreign for outcome in outcomes),
        "unjudged": dict(collections.Counter(one.why for one in unjudged)),
        "median seconds": statistics.median(outcome.seconds for outcome in outcomes) if outcomes else 0.0,
        "wrong": [f"{_name(one)}: {one.got}, {one.recovery}" for one in outcomes if not one.is_right],
        "not judged": [f"{_name(one)}: {one.why}, {one.reason}" for one in unjudged],
    }


def table(judged: Iterable[Outcome | Unjudged]) -> str:
    """The summary as Markdown."""
    verdicts, recoveries = ("fixed", "clean", "unresolved"), (EXACT, MINIMAL, TOO_FEW, FOREIGN, NONE)
    whys = (LEFT_OUT, FAILED)
    heads = ("kind", "models", "right", "expected", *verdicts, *recoveries, "foreign neurons", *whys, "seconds")
    rows = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for entry in summary(judged):
        got, recovery, unjudged = entry["verdicts"], entry["recovery"], entry["unjudged"]
        cells = [
            *(entry[name] for name in heads[:4]),
            *(got.get(verdict, "") for verdict in verdicts),
            *(recovery.get(name, "") for name in recoveries),
            entry["foreign neurons"],
            *(unjudged.get(why, "") for why in whys),
            f"{entry['median seconds']:.1f}",
        ]
        rows.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(rows)


def _recovery(known: KnownModel, found: set[tuple[int, int]], outliers_left: float) -> str:
    if not found:
        return NONE
    if found - known.planted_pairs:
        return FOREIGN
    if found == known.planted_pairs:
        return EXACT
    return MINIMAL if outliers_left < GONE else TOO_FEW


def _with_progress(judged: Iterable[Outcome | Unjudged], total: int, processes: int) -> Iterator[Outcome | Unjudged]:
    """The same, and says how far it is, how long all take, and what could not be judged."""
    start = time.perf_counter()
    for count, found in enumerate(judged, 1):
        yield found
        minutes = (time.perf_counter() - start) / 60
        if isinstance(found, Unjudged):
            typer.echo(f"\r{found.why}: {found.kind}, {_name(found)}: {found.reason}", err=True)
        typer.echo(
            f"\r{count} of {total} in {minutes:.1f} min, about {minutes * (total / count - 1):.1f} more; "
            f"{minutes * processes * total / count / 60:.2f} CPU-hours for all  ",
            err=True,
            nl=count == total,
        )


def _judged(cells: Sequence[Cell], num_images: int, processes: int) -> Iterator[Outcome | Unjudged]:
    """As they come; each of the cells once, whatever happens to it. Ended early, no more of them begin."""
    if not cells:
        return
    pool = ProcessPoolExecutor(
        processes, multiprocessing.get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    )
    try:
        running = {pool.submit(_run, cell, num_images): cell for cell in cells}
        for future in as_completed(running):
            error = future.exception()
            if error is None:
                yield future.result()
            else:  # the other processes go on; all that is left fails if one was killed, and can be run again
                yield Unjudged(**asdict(running[future]), why=FAILED, reason=f"{type(error).__name__}: {error}")
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _run(cell: Cell, num_images: int) -> Outcome | Unjudged:
    """The outcome; or, of a planted model that is not what it should be, why it would judge calibration wrongly."""
    try:
        known = make_known_model(cell.family, cell.kind, trigger=cell.trigger, seed=cell.seed)
        check_truth(known)
    except ValueError as error:
        return Unjudged(**asdict(cell), why=LEFT_OUT, reason=str(error))
    return judge(known, cell, num_images=num_images)


def _read(lines: Path) -> dict[Cell, Outcome | Unjudged]:
    """Whole lines, but those of failures, which are tried again.

    What a kill left of the last line is cut off, so that the next one begins on its own.
    """
    text = lines.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if whole != text:
        os.truncate(lines, len(whole))
    judged: dict[Cell, Outcome | Unjudged] = {}
    for line in whole.decode("utf-8").splitlines():
        fields: dict[str, Any] = {name: _frozen(value) for name, value in json.loads(line).items()}
        found = Unjudged(**fields) if "why" in fields else Outcome(**fields)
        if not isinstance(found, Unjudged) or found.why != FAILED:
            judged[Cell(found.family, found.kind, found.trigger, found.seed)] = found
    return judged


def _name(found: Outcome | Unjudged) -> str:
    return f"{found.family}/{found.trigger}/{found.seed}"


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def main() -> None:
    """The command line of `scripts/confusion_table.py`."""
    typer.run(confusion_table)
