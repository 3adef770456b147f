"""Whether what was read from a calibration's files fits together: they may be damaged, or edited by hand.

Letters: `L` blocks, `F` neurons of a block.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from ttreg_hf.calibration.calibration_result import CalibrationResult

_SHIFT_VALUES = ("per_neuron", "per_layer")
_VERDICTS = ("fixed", "clean", "unresolved")


def check_consistency(result: "CalibrationResult") -> None:
    """Refuse a result that no calibration gives.

    Raises:
        ValueError: scores of another shape or not finite, or a layer or neuron that they do not have.
    """
    scores_LF = result.scores
    if scores_LF.ndim != 2 or scores_LF.dtype != torch.float64 or not scores_LF.numel():
        raise ValueError(
            f"`scores` have a row a layer, in float64, got {scores_LF.dtype} of shape {tuple(scores_LF.shape)}"
        )
    if not bool((torch.isfinite(scores_LF) & (scores_LF >= 0)).all()):
        raise ValueError("`scores` are finite and not negative, got others")
    for name, allowed in (("verdict", _VERDICTS), ("shift_value", _SHIFT_VALUES)):
        if getattr(result, name) not in allowed:
            raise ValueError(f"`{name}` is one of {', '.join(allowed)}, got {getattr(result, name)!r}")
    layers, neurons = scores_LF.shape
    for name, value in _values(result):
        _check_index(name, value, layers, neurons)
        if name.rpartition(".")[2] == "score" and not math.isfinite(value):
            raise ValueError(f"`{name}` is finite, got {value}")
    for name in ("median", "p999", "max", "outlier_fraction"):
        values = getattr(result.norms, name)
        if len(values) != layers or not all(map(math.isfinite, values)):
            raise ValueError(f"`norms.{name}` holds a finite number for each of {layers} layers, got {values!r:.80}")


def _check_index(name: str, value: Any, layers: int, neurons: int) -> None:
    field = name.rpartition(".")[2]
    if field.endswith("layer") and type(value) is int:
        count, first = layers, -layers if name.startswith("config.") else 0
    elif field == "neuron" and type(value) is int:
        count, first = neurons, 0
    else:
        return
    if not first <= value < count:
        raise ValueError(f"`{name}` names {field} {value}, but the `scores` have {count} ({first} to {count - 1})")


def _values(record: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """All plain values in dataclasses and tuples, by their dotted name."""
    if dataclasses.is_dataclass(record):
        for field in dataclasses.fields(record):
            yield from _values(getattr(record, field.name), f"{name}.{field.name}".lstrip("."))
    elif isinstance(record, tuple):
        for place, item in enumerate(record):
            yield from _values(item, f"{name}[{place}]")
    else:
        yield name, record
