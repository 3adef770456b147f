"""What each step of a calibration earns: the same models with it and without, paired."""

import collections
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.confusion_outcomes import EXACT, Cell, Outcome, Unjudged, cell_of

Pair = tuple[Outcome, Outcome]
"""The whole calibration of a model, and the one without a step."""


def trial_summary(judged: Iterable[Outcome | Unjudged]) -> list[dict[str, Any]]:
    """One entry a step, in the order in which they come; models that have no outcome of both kinds are counted.

    `worse` and `better` name models whose verdict, with its neurons, was right and is wrong, or the other way round;
    `other neurons` are found in models that stay right or wrong.
    """
    by_step: dict[str, dict[Cell, Outcome | Unjudged]] = collections.defaultdict(dict)
    for found in judged:
        by_step[found.without][cell_of(found)] = found
    whole = by_step.pop("", {})
    return [_entry(step, whole, without) for step, without in by_step.items()]


def trial_table(judged: Iterable[Outcome | Unjudged]) -> str:
    """The summary as Markdown; below it, models whose verdict is another one."""
    heads = ("without", "models", "right", "whole", "exact", "whole", "better", "worse", "other neurons", "seconds")
    rows = [f"| {' | '.join(heads)} | seconds of the whole | not judged |", "|" + "---|" * (len(heads) + 2)]
    notes = []
    for entry in trial_summary(judged):
        cells = [
            *(entry[name] for name in ("without", "models", "right", "right, whole", "exact", "exact, whole")),
            *(len(entry[name]) for name in ("better", "worse", "other neurons")),
            *(f"{entry[name]:.0f}" for name in ("seconds", "seconds, whole")),
            entry["not judged"],
        ]
        rows.append(f"| {' | '.join(map(str, cells))} |")
        notes += [f"- {entry['without']}, {way}: {line}" for way in ("better", "worse") for line in entry[way]]
    return "\n".join([*rows, "", *notes])


def _entry(
    step: str, whole: dict[Cell, Outcome | Unjudged], without: dict[Cell, Outcome | Unjudged]
) -> dict[str, Any]:
    pairs = _pairs(whole, without)
    changed = [(one, other) for one, other in pairs if one.is_right != other.is_right]
    same = [(one, other) for one, other in pairs if one.is_right == other.is_right]
    return {
        "without": step,
        "models": len(pairs),
        "right": sum(other.is_right for _, other in pairs),
        "right, whole": sum(one.is_right for one, _ in pairs),
        "exact": sum(other.recovery == EXACT for _, other in pairs),
        "exact, whole": sum(one.recovery == EXACT for one, _ in pairs),
        "better": [_line(*pair) for pair in changed if pair[1].is_right],
        "worse": [_line(*pair) for pair in changed if pair[0].is_right],
        "other neurons": [_line(*pair) for pair in same if _said(pair[0]) != _said(pair[1])],
        "seconds": sum(other.seconds for _, other in pairs),
        "seconds, whole": sum(one.seconds for one, _ in pairs),
        "median ratio of seconds": _median_ratio(pairs),
        "not judged": len(without) - len(pairs),
    }


def _pairs(whole: dict[Cell, Outcome | Unjudged], without: dict[Cell, Outcome | Unjudged]) -> list[Pair]:
    found = []
    for cell, other in without.items():
        one = whole.get(cell)
        if isinstance(one, Outcome) and isinstance(other, Outcome):
            found.append((one, other))
    return found


def _said(found: Outcome) -> tuple[Any, ...]:
    """What people would notice."""
    return found.got, found.recovery, found.found, found.missing, found.extra


def _line(one: Outcome, other: Outcome) -> str:
    return f"{one.kind}, {one.name}: {_short(one)} -> {_short(other)}"


def _short(found: Outcome) -> str:
    return f"{found.got}, {found.recovery}, {found.found} of {found.planted}"


def _median_ratio(pairs: Sequence[Pair]) -> float | None:
    return statistics.median(other.seconds / one.seconds for one, other in pairs) if pairs else None
