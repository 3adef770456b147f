"""The confusion table: verdicts and recoveries by kind of model."""

import collections
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.confusion_outcomes import (
    EXACT,
    FAILED,
    FOREIGN,
    LEFT_OUT,
    MINIMAL,
    NONE,
    TOO_FEW,
    UNWIRED,
    Outcome,
    Unjudged,
)
from benchmarks.planted_kinds import KINDS


def summary(judged: Iterable[Outcome | Unjudged]) -> list[dict[str, Any]]:
    """One entry a kind: counts of verdicts and recoveries, and of what could not be judged, in the order of kinds."""
    by_kind = collections.defaultdict(list)
    for found in judged:
        by_kind[found.kind].append(found)
    return [_entry(kind, by_kind[kind]) for kind in dict.fromkeys((*KINDS, *by_kind)) if by_kind[kind]]


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
        "constant mode": _passed(outcome.constant_mode for outcome in outcomes),
        "unjudged": dict(collections.Counter(one.why for one in unjudged)),
        "median seconds": statistics.median(outcome.seconds for outcome in outcomes) if outcomes else 0.0,
        "wrong": [f"{one.name}: {one.got}, {one.recovery}" for one in outcomes if not one.is_right],
        "not judged": [f"{one.name}: {one.why}, {one.reason}" for one in unjudged],
    }


def _passed(checks: Iterable[bool | None]) -> str:
    """How many of the models in which it was measured keep the bounds."""
    measured = [passed for passed in checks if passed is not None]
    return f"{sum(measured)} of {len(measured)}" if measured else ""


def table(judged: Iterable[Outcome | Unjudged]) -> str:
    """The summary as Markdown."""
    verdicts, recoveries = ("fixed", "clean", "unresolved"), (EXACT, MINIMAL, TOO_FEW, FOREIGN, UNWIRED, NONE)
    whys = (LEFT_OUT, FAILED)
    heads = (
        "kind",
        "models",
        "right",
        "expected",
        *verdicts,
        *recoveries,
        "foreign neurons",
        "constant mode",
        *whys,
        "seconds",
    )
    rows = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for entry in summary(judged):
        got, recovery, unjudged = entry["verdicts"], entry["recovery"], entry["unjudged"]
        cells = [
            *(entry[name] for name in heads[:4]),
            *(got.get(verdict, "") for verdict in verdicts),
            *(recovery.get(name, "") for name in recoveries),
            entry["foreign neurons"],
            entry["constant mode"],
            *(unjudged.get(why, "") for why in whys),
            f"{entry['median seconds']:.1f}",
        ]
        rows.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(rows)
