"""Judgements of grown models as a table, with what they do not show."""

from collections.abc import Mapping, Sequence
from typing import Any

from ttreg_hf.report.table import Table, markdown

CAPTION = (
    "The artifacts were trained in by this project, with the marks that the detector looks for. The table shows that "
    "neurons which nobody wired are found, and that the model before growing comes back; it shows no benefit."
)
LEGEND = (
    "Last columns: 1 - cosine of the final hidden states to the model before growing, with 95 % intervals over "
    "photographs that nothing else has seen."
)
_FIRST = ("variant", "seed", "verdict", "right", "neurons by layer", "outliers an image")
_DISTANCES = ("CLS", "ordinary patches", "outlier patches")
_ROUNDING = 1e-12
_NO_ROW = {"model": "", "outlier_ratio": None, "distances": {}}


def table(results: Sequence[dict[str, Any]]) -> str:
    """Judgements as Markdown.

    Args:
        results: as their JSON gives them.
    """
    lines: list[tuple[str, ...]] = []
    left_out: list[str] = []
    for found in results:
        first = _first_cells(found)
        seconds = " + ".join(f"{value:.0f}" for value in found["seconds"].values())
        for place, row in enumerate(found["rows"] or [_NO_ROW]):
            cells = (row["model"], interval_cell(row["outlier_ratio"]))
            distances = (interval_cell(row["distances"].get(name)) for name in _DISTANCES)
            lines.append((*(("",) * len(first) if place else first), *cells, *distances, "" if place else seconds))
        named = f"{found['variant']}, {found['seed']}"
        left_out += left_out_words(named, found["left_out"])
    heads = (*_FIRST, "model", "outliers / grown", *_DISTANCES, "seconds")
    return "\n".join([CAPTION, "", markdown(Table(heads, tuple(lines))), "", LEGEND, *left_out]) + "\n"


def _first_cells(found: dict[str, Any]) -> tuple[str, ...]:
    layers = ", ".join(f"{layer}: {count}" for layer, count in found["layers"].items())
    right = "yes" if found["verdict"] in found["expected"] else "no"
    outliers = f"{found['outliers_an_image']:.1f}"
    return found["variant"], str(found["seed"]), found["verdict"], right, layers, outliers


def left_out_words(model: str, left_out: Mapping[str, str]) -> list[str]:
    """Which rows a model does not have, and why."""
    return [f"{model}: no row {name}: {why}." for name, why in left_out.items()]


def interval_cell(found: Sequence[float] | None, form: str = ".4f") -> str:
    """A value, with its interval if it has one; nothing of nothing. What rounding leaves of a difference is 0."""
    if not found:
        return ""
    value, *bounds = (f"{0.0 if abs(each) < _ROUNDING else each:{form}}" for each in found)
    return value + (f" ({bounds[0]} to {bounds[1]})" if bounds else "")
