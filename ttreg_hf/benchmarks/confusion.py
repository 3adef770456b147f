"""Whether calibration without any setting gets made models right: the table of verdicts and of neurons found.

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

from ttreg_hf.calibration.config import CalibrationConfig
from ttreg_hf.calibration.driver import calibrate
from ttreg_hf.planted import synthetic_images
from ttreg_hf.planted.interventions import GONE, check_truth, effect_of
from ttreg_hf.planted.kinds import FAMILIES, KINDS, has_kind, make_known_model
from ttreg_hf.planted.truth import KnownModel

EXACT, MINIMAL, TOO_FEW, FOREIGN, NONE = "exact", "minimal", "too few", "foreign", "none"


@dataclass(frozen=True)
class Cell:
    """One made model."""

    family: str
    kind: str
    trigger: str
    seed: int


@dataclass(frozen=True)
class Outcome:
    """What calibration said about one made model, beside the truth.

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


def confusion_table(
    seeds: Annotated[int, typer.Option(help="How many models of each sort.")] = 10,
    families: Annotated[str, typer.Option(help="Separated by commas; all by default.")] = "",
    kinds: Annotated[str, typer.Option(help="Separated by commas; all by default.")] = "",
    num_images: Annotated[int, typer.Option(help="For each calibration.")] = 256,
    processes: Annotated[
        int, typer.Option("--processes", "-j", min=1, help="That share the models, of one thread each.")
    ] = 2,
    lines: Annotated[Path | None, typer.Option(help="JSON lines, one a model; a run goes on where they end.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of the table.")] = False,
) -> None:
    """Calibrate models whose truth is known, and compare."""
    wanted = [
        Cell(family, kind, trigger, seed)
        for seed in range(seeds)
        for kind in _chosen("--kinds", kinds, KINDS)
        for family in _chosen("--families", families, FAMILIES)
        if has_kind(family, kind)
        for trigger in KINDS[kind].triggers
    ]
    done = _read(lines) if lines is not None and lines.exists() else {}
    outcomes = [done[cell] for cell in wanted if cell in done]
    left = [cell for cell in wanted if cell not in done]
    for outcome in _outcomes(left, num_images, processes):
        outcomes.append(outcome)
        if lines is not None:
            with lines.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(outcome)) + "\n")
        typer.echo(f"\r{len(outcomes)} of {len(wanted)}", err=True, nl=len(outcomes) == len(wanted))
    typer.echo(json.dumps(summary(outcomes), indent=2) if as_json else table(outcomes))


def judge(known: KnownModel, cell: Cell, *, num_images: int) -> Outcome:
    """Calibrate a made model on images that it was not tuned on, and hold the result against its truth."""
    images = synthetic_images(num_images, seed=20_000 + cell.seed)
    start = time.perf_counter()
    result = calibrate(known.model, images, config=CalibrationConfig(num_images=num_images))
    seconds = time.perf_counter() - start
    found = {(neuron.layer, neuron.neuron) for neuron in result.register_neurons}
    threshold = min(max(result.config.norm_threshold or 0.0, known.norm_threshold), 1.5 * known.norm_threshold)
    seen_as = dataclasses.replace(known, norm_threshold=threshold)  # a pruned set may leave what is just below its own
    effect = effect_of(seen_as, found | known.fixed_pairs, synthetic_images(num_images, seed=30_000 + cell.seed))
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


def summary(outcomes: Iterable[Outcome]) -> list[dict[str, Any]]:
    """One entry a kind: counts of verdicts and recoveries, in the order of the kinds."""
    by_kind = collections.defaultdict(list)
    for outcome in outcomes:
        by_kind[outcome.kind].append(outcome)
    return [
        {
            "kind": kind,
            "models": len(of_kind),
            "right": sum(outcome.is_right for outcome in of_kind),
            "expected": " or ".join(of_kind[0].expected),
            "verdicts": dict(collections.Counter(outcome.got for outcome in of_kind)),
            "recovery": dict(collections.Counter(outcome.recovery for outcome in of_kind)),
            "foreign neurons": sum(outcome.foreign for outcome in of_kind),
            "median seconds": statistics.median(outcome.seconds for outcome in of_kind),
            "wrong": [f"{o.family}/{o.trigger}/{o.seed}: {o.got}, {o.recovery}" for o in of_kind if not o.is_right],
        }
        for kind in KINDS
        if (of_kind := by_kind[kind])
    ]


def table(outcomes: Iterable[Outcome]) -> str:
    """The summary as Markdown."""
    verdicts, recoveries = ("fixed", "clean", "unresolved"), (EXACT, MINIMAL, TOO_FEW, FOREIGN, NONE)
    heads = ("kind", "models", "right", "expected", *verdicts, *recoveries, "foreign neurons", "seconds")
    rows = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for entry in summary(outcomes):
        got, recovery = entry["verdicts"], entry["recovery"]
        cells = [
            *(entry[name] for name in heads[:4]),
            *(got.get(verdict, "") for verdict in verdicts),
            *(recovery.get(name, "") for name in recoveries),
            entry["foreign neurons"],
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


def _outcomes(cells: Sequence[Cell], num_images: int, processes: int) -> Iterator[Outcome]:
    """As they come; says which made models are left out, and which calibrations failed."""
    if not cells:
        return
    with ProcessPoolExecutor(
        processes, multiprocessing.get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        running = {pool.submit(_run, cell, num_images): cell for cell in cells}
        for future in as_completed(running):
            cell, error = running[future], future.exception()
            name = f"{cell.family}, {cell.kind}, {cell.trigger}, seed {cell.seed}"
            if error is not None:
                typer.echo(f"\rfailed: {name}: {type(error).__name__}: {error}", err=True)
            elif isinstance(outcome := future.result(), str):
                typer.echo(f"\rleft out: {name}: {outcome}", err=True)
            else:
                yield outcome


def _run(cell: Cell, num_images: int) -> Outcome | str:
    """The outcome; or, of a made model that is not what it should be, why it would judge calibration wrongly."""
    known = make_known_model(cell.family, cell.kind, trigger=cell.trigger, seed=cell.seed)
    try:
        check_truth(known)
    except ValueError as error:
        return str(error)
    return judge(known, cell, num_images=num_images)


def _read(lines: Path) -> dict[Cell, Outcome]:
    """Whole lines; what a kill left of the last one is cut off, so that the next line begins on its own."""
    text = lines.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if whole != text:
        os.truncate(lines, len(whole))
    outcomes = {}
    for line in whole.decode("utf-8").splitlines():
        fields: dict[str, Any] = {name: _frozen(value) for name, value in json.loads(line).items()}
        outcome = Outcome(**fields)
        outcomes[Cell(outcome.family, outcome.kind, outcome.trigger, outcome.seed)] = outcome
    return outcomes


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _chosen(option: str, names: str, allowed: Iterable[str]) -> list[str]:
    if not names:
        return list(allowed)
    chosen = [name.strip() for name in names.split(",")]
    unknown = sorted(set(chosen) - set(allowed))
    if unknown:
        raise typer.BadParameter(f"{option} takes {', '.join(allowed)}; got {', '.join(unknown)}.")
    return chosen


def main() -> None:
    """The command line of `scripts/confusion_table.py`."""
    typer.run(confusion_table)
