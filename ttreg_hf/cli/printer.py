"""Lines and tables for people, one JSON object for programs. Only rank 0 prints."""

import json
import math
import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from ttreg_hf.report.table import Table as TextTable

_WIDTH_OF_FILES = 120  # where stdout is no terminal


class Printer:
    """Prints for people, or, with `as_json`, one JSON object on stdout."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json

    def say(self, line: str = "") -> None:
        """One line for people, never broken."""
        if is_first_rank() and not self.as_json:
            print(line, flush=True)

    def note(self, line: str) -> None:
        """One line that is said in any case; beside JSON it goes to stderr."""
        if is_first_rank():
            print(line, file=sys.stderr if self.as_json else sys.stdout, flush=True)

    def show(self, table: "Table") -> None:
        """A table for people."""
        from rich.console import Console

        if is_first_rank() and not self.as_json:
            wide = not (sys.stdout.isatty() or "COLUMNS" in os.environ)
            Console(width=_WIDTH_OF_FILES if wide else None, highlight=False).print(table)

    def show_table(self, table: "TextTable", *, left: int = 1) -> None:
        """A table of the library for people; its first columns are words, on the left; a row that failed is red."""
        shown = new_table(*table.columns, left=table.columns[:left])
        for count, row in enumerate(table.rows):
            mark = table.marks[count] if table.marks else ""
            shown.add_row(*row, style="red" if mark == "no" else None)
        self.show(shown)

    def result(self, fields: dict[str, Any]) -> None:
        """All of it for programs."""
        if is_first_rank() and self.as_json:
            print(json.dumps(_plain(fields), indent=2, allow_nan=False))


def new_table(*columns: str, left: Iterable[str] = ()) -> "Table":
    """An empty table; columns are numbers, on the right, unless named in `left`."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for count, column in enumerate(columns):
        table.add_column(column, justify="left" if column in left else "right", no_wrap=count == 0)
    return table


def rank() -> str:
    """Of this process among those that a launcher started."""
    return os.environ.get("RANK") or "0"


def say_working(what: str) -> None:
    """Say on stderr what takes long now, such as `loading the model ...`."""
    if is_first_rank():
        print(what, file=sys.stderr, flush=True)


def is_first_rank() -> bool:
    """Whether this process is the one of a run that speaks."""
    return rank() == "0"


def stderr_is_terminal() -> bool:
    """Whether somebody may be looking at stderr."""
    return sys.stderr.isatty()


def _plain(value: Any) -> Any:
    """As strict JSON takes it: no NaN, no infinity, no tuples, no paths."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, os.PathLike) else value
