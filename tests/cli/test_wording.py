"""The command line speaks of its own options: those of the verb that was called."""

import ast
import functools
import importlib
import inspect
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import ttreg_hf
from ttreg_hf.cli.app import _VERBS
from ttreg_hf.cli.command import _flattened, _option_names
from ttreg_hf.cli.lazy_verb import LazyVerb
from ttreg_hf.cli.wording import in_own_options

from .conftest import run

OPTIONS = {"image_column": "--image-column", "force": "--force", "config_only": "--config-only", "x": "--full-weights"}


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("Name it with `image_column` (`--image-column`).", "Name it with `--image-column`."),
        ("`--force` (`force=True`) goes on.", "`--force` goes on."),
        ("`image_column` is a column, got 'a'.", "`--image-column` is a column, got 'a'."),
        ("`norm_threshold` is kept.", "`norm_threshold` is kept."),
        ("Repair them, or allow more with `share` (`--max-bad`).", "Repair them."),
        ("It is bad. Give `--max-bad 3`. Try again.", "It is bad. Try again."),
        ("Use `ttreg apply M --output D` (`save_checkpoint`).", "Use `ttreg apply M --output D`."),
        ("`--full-weights` (`config_only=False`) does.", "`--full-weights` does."),
        ("Find them with `calibrate` (`ttreg calibrate`).", "Find them with `ttreg calibrate`."),
    ],
)
def test_messages_are_put_into_the_verbs_words(message, expected):
    assert in_own_options(message, OPTIONS) == expected


def function_of(verb: LazyVerb) -> Callable[..., None]:
    module, _, name = verb._target.partition(":")
    return getattr(importlib.import_module(f"ttreg_hf.cli.{module}"), name)


PUSH = next(verb for verb in _VERBS if verb.name == "push")


@functools.cache
def messages() -> list[str]:
    """All texts of the package that name an option; what they are filled with is X."""
    found = []
    for path in Path(ttreg_hf.__file__).parent.rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        pieces = {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
        for node in nodes:
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "X" for part in node.values]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in pieces:
                found.append(node.value)
    return [text for text in found if "`--" in text and "\n" not in text]


@pytest.mark.parametrize("verb", _VERBS, ids=lambda verb: verb.name)
def test_no_message_names_an_option_that_the_verb_lacks(verb):
    options = _option_names(_flattened(function_of(verb))[0])
    assert len(messages()) > 20
    for message in messages():
        told = in_own_options(message, options)
        assert set(re.findall(r"`(--[a-z-]+)", told)) <= {*options.values()}, told
        assert not re.search(r"\(`[a-z_]+=", told), told


def test_options_of_a_verb_are_those_that_it_takes():
    options = _option_names(_flattened(function_of(PUSH))[0])
    assert {"--config-only", "--full-weights", "--private", "--public", "--dry-run"} <= {*options.values()}
    assert "checkpoint" not in options
    assert len(options) >= len(inspect.signature(function_of(PUSH)).parameters) - 2


def test_unreadable_images_are_told_with_remedies_that_the_verb_has(base, tmp_path):
    for count in range(4):
        (tmp_path / f"{count}.jpg").write_text("broken")
    inspected = run("inspect", base, "--dataset", tmp_path)
    calibrated = run("calibrate", base, "--dataset", tmp_path, "--output", tmp_path / "c")
    assert inspected.code == calibrated.code == 1
    assert "max_bad" not in inspected.err + calibrated.err
    assert "--max-bad-images" not in inspected.err


def test_refusals_speak_of_options_too(base, calibration, tmp_path):
    folder = shutil.copytree(calibration, tmp_path / "c")
    fields = json.loads((folder / "calibration.json").read_text()) | {"verdict": "unresolved"}
    (folder / "calibration.json").write_text(json.dumps(fields))
    ended = run("apply", base, "--calibration", folder, "--output", tmp_path / "ck")
    assert ended.code == 3
    assert ended.err.endswith("is unresolved. `--force` goes on all the same.\n")
