"""A table of text, made once and shown on a page, a card or the terminal."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

_MARKS = re.compile(r"[\\`*\[\]|]")


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
    """A table as Markdown, in which its text stays text."""
    lines: list[Sequence[str]] = [list(map(markdown_text, line)) for line in (table.columns, *table.rows)]
    lines.insert(1, ("---",) * len(table.columns))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def markdown_text(text: str) -> str:
    """Text from elsewhere as one line of Markdown: no link, no HTML, no emphasis, no cell."""
    return _MARKS.sub(r"\\\g<0>", " ".join(text.split())).replace("<", "&lt;").replace(">", "&gt;")
