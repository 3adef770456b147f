"""What calibration said about models whose truth is known, one JSON line each."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

EXACT, MINIMAL, TOO_FEW, FOREIGN, NONE, UNWIRED = "exact", "minimal", "too few", "foreign", "none", "unwired"
LEFT_OUT, FAILED = "left out", "failed"
GROWN = "grown"
"""Family of the models in which artifacts were grown."""


@dataclass(frozen=True)
class Cell:
    """One model: planted, or of family `grown`, whose kind is the name of its variant."""

    family: str
    kind: str
    trigger: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.family}/{self.trigger}/{self.seed}"


@dataclass(frozen=True)
class Outcome(Cell):
    """What calibration said about one model, beside the truth.

    Args:
        expected: the verdicts that are right.
        got: the verdict.
        recovery: `exact` (the planted neurons and spikes), `minimal` (some of them, and the outliers go), `too few`
            (some of them, and outliers stay), `foreign` (one that was not planted), `unwired` (nobody planted any) or
            `none`.
        planted, found, foreign: counts of neurons and of spikes of the position table.
        outliers_left: after moving what was found: outliers after / before at any block; by the chosen threshold where
            that is 1 to 1.5 times the truth's.
        similarity: of the pooled feature then.
        norm_threshold: that calibration chose; the truth's lies between the populations.
        known_threshold: the truth's.
        missing, extra: what is planted and not found, and found and not planted, ten at most.
        seconds: that calibration took.
        without: what was taken out of calibration, or set otherwise, by its name in `STEPS`; nothing by default.
        constant_mode: whether it keeps the bounds of the verdict too; `None` where it was not measured.
    """

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
    missing: tuple[tuple[Any, ...], ...]
    extra: tuple[tuple[Any, ...], ...]
    seconds: float
    without: str = ""
    constant_mode: bool | None = None

    @property
    def is_right(self) -> bool:
        """The verdict is right, and a model said to be fixed is fixed with what was planted alone."""
        return self.got in self.expected and (self.got != "fixed" or self.recovery in (EXACT, MINIMAL, UNWIRED))


@dataclass(frozen=True)
class Unjudged(Cell):
    """A model that says nothing about calibration; it is counted, so that no model goes missing.

    Args:
        why: `left out` (it is not what it should be) or `failed` (an error that nobody expected).
        reason: in words.
        without: as in `Outcome`.
    """

    why: str
    reason: str
    without: str = ""


def cell_of(found: Cell) -> Cell:
    """The model alone."""
    return Cell(found.family, found.kind, found.trigger, found.seed)


def read_lines(lines: Path) -> list[Outcome | Unjudged]:
    """Whole lines, but those of failures, which are tried again.

    What a kill left of the last line is cut off, so that the next one begins on its own.
    """
    text = lines.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if whole != text:
        os.truncate(lines, len(whole))
    judged: list[Outcome | Unjudged] = []
    for line in whole.decode("utf-8").splitlines():
        fields: dict[str, Any] = {name: _frozen(value) for name, value in json.loads(line).items()}
        found = Unjudged(**fields) if "why" in fields else Outcome(**fields)
        if not isinstance(found, Unjudged) or found.why != FAILED:
            judged.append(found)
    return judged


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
