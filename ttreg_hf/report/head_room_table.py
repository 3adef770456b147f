"""Head-room as a table: the base model's linear layers and the patched model's, against narrow number formats."""

from collections.abc import Callable

from ttreg_hf.measuring.head_room import FLOAT16_MAX, FP8_MAX, HeadRoom, HeadRooms, LinearRoom
from ttreg_hf.pictures.numbers import short_number
from ttreg_hf.report.table import Table

_MOST_LAYERS = 5  # that change most, each with a line of its own
_FIGURES: tuple[tuple[str, Callable[[HeadRoom], str]], ...] = (
    ("largest input of a linear layer", lambda room: _with_name(room.largest_input, "largest_input")),
    ("largest output of a linear layer", lambda room: _with_name(room.largest_output, "largest_output")),
    ("linear layers above float16's 65,504", lambda room: _share(room, FLOAT16_MAX)),
    ("linear layers above FP8's 448 (e4m3)", lambda room: _share(room, FP8_MAX)),
    (
        "largest int8 step (largest input / 127) over the median input",
        lambda room: _with_name(room.coarsest, "int8_step"),
    ),
)


def head_room_table(rooms: HeadRooms) -> Table:
    """The figures of the whole tower, then the layers whose largest output changes most."""
    rows = [(name, figure(rooms.before), figure(rooms.after)) for name, figure in _FIGURES]
    pairs = sorted(zip(rooms.before.linears, rooms.after.linears, strict=True), key=_change, reverse=True)
    rows += [
        (f"largest output of {before.name}", short_number(before.largest_output), short_number(after.largest_output))
        for before, after in pairs[:_MOST_LAYERS]
    ]
    return Table(("values in the linear layers, largest over all images and tokens", "before", "after"), tuple(rows))


def _with_name(linear: LinearRoom, figure: str) -> str:
    return f"{short_number(getattr(linear, figure))} ({linear.name})"


def _share(room: HeadRoom, limit: float) -> str:
    return f"{room.above(limit)} of {len(room.linears)}"


def _change(pair: tuple[LinearRoom, LinearRoom]) -> float:
    """Factor between the two largest outputs, either way."""
    values = sorted(each.largest_output for each in pair)
    return values[1] / values[0] if values[0] else 1.0
