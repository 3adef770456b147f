"""Head-room in words: which layer, how much of it, and what patching changed."""

from ttreg_hf.measuring.head_room import HeadRoom, HeadRooms, LinearRoom
from ttreg_hf.report.head_room_table import head_room_table

BEFORE = HeadRoom(tuple(LinearRoom(f"block.{n}", 10.0 + n, 600.0 if n == 3 else 20.0, 0.5) for n in range(8)))
AFTER = HeadRoom(tuple(LinearRoom(f"block.{n}", 10.0 + n, 30.0 if n == 3 else 20.0, 0.5) for n in range(8)))


def test_the_table_names_the_layers_and_counts_them():
    rows = {row[0]: row[1:] for row in head_room_table(HeadRooms(BEFORE, AFTER)).rows}
    assert rows["largest input of a linear layer"] == ("17 (block.7)", "17 (block.7)")
    assert rows["largest output of a linear layer"] == ("600 (block.3)", "30 (block.3)")
    assert rows["linear layers above FP8's 448 (e4m3)"] == ("1 of 8", "0 of 8")
    assert rows["linear layers above float16's 65,504"] == ("0 of 8", "0 of 8")
    assert rows["largest int8 step (largest input / 127) over the median input"][0] == "0.268 (block.7)"


def test_the_layers_that_change_most_come_first_whichever_way():
    rows = head_room_table(HeadRooms(BEFORE, AFTER)).rows[5:]
    assert rows[0] == ("largest output of block.3", "600", "30")
    assert len(rows) == 5
    assert head_room_table(HeadRooms(AFTER, BEFORE)).rows[5] == ("largest output of block.3", "30", "600")
