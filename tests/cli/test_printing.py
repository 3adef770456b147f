"""What is printed where: JSON is strict, bars are for terminals, only rank 0 prints."""

import io
import json
import os

import pytest
import torch

from ttreg_hf.cli.command import as_verb
from ttreg_hf.cli.printer import Printer, new_table, progress_bars

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


def test_bars_are_quiet_where_stderr_is_no_terminal(capsys):
    with progress_bars() as progress:
        assert list(progress("score", BATCHES, 500)) == BATCHES
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
