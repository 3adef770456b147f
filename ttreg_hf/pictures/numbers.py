"""Numbers as people read them: in pictures, tables, cards and on the terminal."""

from collections.abc import Collection
from typing import Any, SupportsFloat


def percent(share: SupportsFloat) -> str:
    """Two decimals: `0.31 %`, `74.00 %`."""
    return f"{100 * float(share):.2f} %"


def short_number(value: float) -> str:
    """Three digits: `0.00312`, `4.5`, `369`, `2830`."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def counted(number: int, noun: str) -> str:
    """Such as `1 image` and `2 images`."""
    return f"{number} {noun}{'s' * (number != 1)}"


def what_is_moved(register_neurons: Collection[Any], fixed_positions: Collection[Any], *, layers: bool = False) -> str:
    """Such as `2 register neurons in 1 layer and 3 spikes of the position table`.

    Args:
        register_neurons: that begin with their layer.
        fixed_positions: rows of the table.
        layers: whether to say in how many layers the neurons are.
    """
    parts = []
    if register_neurons or not fixed_positions:
        in_layers = f" in {counted(len({layer for layer, *_ in register_neurons}), 'layer')}" if layers else ""
        parts.append(f"{counted(len(register_neurons), 'register neuron')}{in_layers}")
    if fixed_positions:
        parts.append(f"{counted(len(fixed_positions), 'spike')} of the position table")
    return " and ".join(parts)


def interval_text(bounds: tuple[float, float] | None) -> str:
    """Such as `0.0012 to 0.0345`; nothing where there is none."""
    return "" if bounds is None else f"{bounds[0]:.4f} to {bounds[1]:.4f}"
