"""Numbers as people read them: in pictures, tables, cards and on the terminal."""

from typing import SupportsFloat


def percent(share: SupportsFloat) -> str:
    """Two decimals: `0.31 %`, `74.00 %`."""
    return f"{100 * float(share):.2f} %"


def short_number(value: float) -> str:
    """Three digits: `0.00312`, `4.5`, `369`, `2830`."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def counted(number: int, noun: str) -> str:
    """Such as `1 image` and `2 images`."""
    return f"{number} {noun}{'s' * (number != 1)}"


def interval_text(bounds: tuple[float, float] | None) -> str:
    """Such as `0.0012 to 0.0345`; nothing where there is none."""
    return "" if bounds is None else f"{bounds[0]:.4f} to {bounds[1]:.4f}"
