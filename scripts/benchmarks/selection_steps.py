"""What can be taken out of a calibration, or set otherwise, for a trial: steps by name.

Rules are taken out by setting their constants so that they never apply. Every other constant is halved and doubled.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ttreg_hf.calibration.config import CalibrationConfig, Constants, GateConfig

LIST, GROUPS = "list", ("rules", "constants", "populations", "all")


@dataclass(frozen=True)
class Settings:
    """All that a calibration rests on.

    Args:
        config: what users set.
        gate: bounds of the verdict `fixed`.
        constants: that nobody sets.
    """

    config: CalibrationConfig = field(default_factory=CalibrationConfig)
    gate: GateConfig = field(default_factory=GateConfig)
    constants: Constants = field(default_factory=Constants)


Changes = Mapping[str, Any]
"""Values by the dotted name of a field of `Settings`."""

_RULES: dict[str, Changes] = {
    "two image sets": {"constants.selection.num_others": 0},
    "second round": {"config.rounds": 1},
    "dense neurons": {"constants.selection.few": 1.0},
    "costly neurons": {"constants.selection.min_cost": math.inf},
    "half excess": {"constants.inspection.staying_share": math.inf},
    "content": {"constants.inspection.content_share": math.inf},
    "fixed positions": {"constants.inspection.positions.fixed_share": math.inf},
    "other detection blocks": {"constants.inspection.block_tolerance": 0.0},
    "first layer": {"config.first_layer": 0},
    "later blocks": {"gate.max_later_ratio": math.inf},
    "hint": {"constants.inspection.hint_evidence": math.inf},
    "distance of the dip": {"constants.inspection.populations.min_ratio": 1.0},
    "distance of the peak": {"constants.inspection.populations.min_deviations": 0.0},
    "share above the dip": {"constants.inspection.populations.max_share": 1.0},
}


def _numbers(record: Any, path: str) -> Iterator[tuple[str, float]]:
    for each in dataclasses.fields(record):
        value, name = getattr(record, each.name), f"{path}.{each.name}"
        if dataclasses.is_dataclass(value):
            yield from _numbers(value, name)
        else:
            yield name, value


def _scaled(value: float, factor: float) -> float:
    """Whole numbers stay whole and above zero, and shares stay shares."""
    if isinstance(value, int):
        return max(1, round(factor * value))
    return min(factor * value, 1.0) if value < 1 else factor * value


def _varied() -> dict[str, Changes]:
    numbers = dict([*_numbers(Constants(), "constants"), ("config.budget", CalibrationConfig().budget)])
    return {
        f"{_short(path, numbers)} {word}": {path: _scaled(value, factor)}
        for path, value in numbers.items()
        for word, factor in (("halved", 0.5), ("doubled", 2.0))
    }


def _short(path: str, paths: Iterable[str]) -> str:
    """The end of a dotted name that no other has."""
    names = path.split(".")
    ends = (".".join(names[-count:]) for count in range(1, len(names) + 1))
    return next(end for end in ends if sum(other.endswith(f".{end}") for other in paths) == 1)


STEPS: Mapping[str, Changes] = {**_RULES, **_varied()}


def settings_without(step: str, config: CalibrationConfig) -> Settings:
    """A calibration without this step; whole, for an empty name."""
    settings = Settings(config=config)
    for path, value in STEPS[step].items() if step else ():
        settings = _replaced(settings, path.split("."), value)
    return settings


def steps_of(names: Sequence[str]) -> tuple[str, ...]:
    """Names of steps, each once; groups stand for theirs."""
    groups = {
        "rules": tuple(_RULES),
        "constants": tuple(name for name in STEPS if name not in _RULES),
        "populations": tuple(
            name for name, changes in STEPS.items() if any(".populations." in path for path in changes)
        ),
        "all": tuple(STEPS),
    }
    return tuple(dict.fromkeys(step for name in names for step in groups.get(name, (name,))))


def _replaced(record: Any, path: Sequence[str], value: Any) -> Any:
    name, *rest = path
    return dataclasses.replace(record, **{name: _replaced(getattr(record, name), rest, value) if rest else value})
