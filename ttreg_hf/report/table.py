"""A table of text, made once and shown on a page, a card or the terminal."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """Rows of text; the first cell of each names it.

    Args:
        columns: their heads.
        rows: as many cells each.
        marks: one a row: `"ok"`, `"no"`, or nothing; colours the row's last cell.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    marks: tuple[str, ...] = ()


def markdown(table: Table) -> str:
    """A table as Markdown."""
    lines: list[Sequence[str]] = [table.columns, ("---",) * len(table.columns), *table.rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
