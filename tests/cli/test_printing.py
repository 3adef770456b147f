"""What is printed where: JSON is strict, bars are for terminals, only rank 0 prints."""

import io
import json
import os

import pytest
import torch

from ttreg_hf.cli import progress as progress_module
from ttreg_hf.cli.command import as_verb
from ttreg_hf.cli.printer import Printer, new_table
from ttreg_hf.cli.progress import progress_bars, time_left

BATCHES = [torch.zeros(4, 3, 2, 2), torch.zeros(3, 3, 2, 2)]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_json_is_strict_whatever_floats_there_are(capsys, tmp_path):
    fields = {"nan": float("nan"), "inf": [float("inf")], "pair": (1, 2), "path": tmp_path, "nested": {3: 1.5}}
    Printer(True).result(fields)
    expected = {"nan": None, "inf": [None], "pair": [1, 2], "path": str(tmp_path), "nested": {"3": 1.5}}
    assert json.loads(capsys.readouterr().out) == expected


def test_beside_json_only_notes_are_said_and_on_stderr(capsys):
    printer = Printer(True)
    printer.say("text")
    printer.show(new_table("a"))
    printer.note("images: x")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "images: x\n")


def test_other_ranks_print_nothing(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    for printer in (Printer(False), Printer(True)):
        printer.say("text")
        printer.note("note")
        printer.show(new_table("a"))
        printer.result({"a": 1})
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("rank", "shown"), [("0", True), ("1", False)])
def test_bars_count_images_on_a_terminal_of_rank_0(monkeypatch, rank, shown):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("TERM", "xterm")
    with progress_bars(available=7) as progress:
        assert list(progress("score", BATCHES, 500)) == BATCHES
    assert ("7/7" in terminal.getvalue() and "score" in terminal.getvalue()) == shown
    assert bool(terminal.getvalue()) == shown


class Clocked:
    """Batches that take so many seconds each on a clock of our own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
        self.now, self.seconds = 0.0, seconds
        monkeypatch.setattr(progress_module.time, "monotonic", lambda: self.now)

    def batches(self, count: int):
        for _ in range(count):
            self.now += self.seconds
            yield torch.zeros(4, 3, 2, 2)


def test_without_a_terminal_a_line_comes_every_ten_seconds(capsys, monkeypatch):
    clocked = Clocked(monkeypatch, seconds=4)
    with progress_bars() as progress:
        list(progress("score", clocked.batches(7), 40))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "score: 12 of 40 images, 1/s, about 28 s left",
        "score: 24 of 40 images, 1/s, about 16 s left",
    ]


def test_lines_come_over_short_stages_too_and_say_what_was_found(capsys, monkeypatch):
    clocked = Clocked(monkeypatch, seconds=4)

    class Stage:
        def __iter__(self):
            return clocked.batches(2)

        def status(self):
            return "3 outliers"

    with progress_bars(available=8) as progress:
        for _ in range(4):
            list(progress("select", Stage(), 500))
    assert capsys.readouterr().err.splitlines() == [
        "select: 4 of 8 images, 1/s, about 4 s left, 3 outliers",
        "select: 8 of 8 images, 1/s, about 0 s left, 3 outliers",
    ]


@pytest.mark.parametrize(("seconds", "text"), [(0, "0 s"), (89, "89 s"), (91, "2 min"), (7500, "2 h 5 min")])
def test_time_left_is_said_in_one_unit_or_two(seconds, text):
    assert time_left(seconds) == text


def test_short_work_and_other_ranks_say_nothing(capsys, monkeypatch):
    with progress_bars() as progress:
        assert list(progress("score", BATCHES, 500)) == BATCHES
    monkeypatch.setenv("RANK", "1")
    clocked = Clocked(monkeypatch, seconds=40)
    with progress_bars() as progress:
        assert len(list(progress("score", clocked.batches(3), 40))) == 3
    assert capsys.readouterr() == ("", "")


def test_libraries_are_quiet_only_while_a_verb_runs():
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    def state():
        return (
            logging.get_verbosity(),
            logging.is_progress_bar_enabled(),
            hub_logging.get_verbosity(),
            dict(os.environ),
        )

    before = state()
    seen = []
    as_verb(lambda: seen.append(state()))()
    assert seen[0][0] == logging.ERROR
    assert not seen[0][1]
    assert seen[0][2] == logging.ERROR
    assert state() == before
