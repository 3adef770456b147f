"""`scripts/reproduce.py`, whole, on the stand-in Hub: a zoo of made models under the published names."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from local_hub import LocalHub
from warm import run_warm

from benchmark_scripts import zoo
from ttreg_hf.planted import planted_model

SCRIPT = Path(__file__).parents[2] / "scripts" / "reproduce.py"
TARGETS = 6
RUN = """import runpy, sys
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def _run(hub: LocalHub, folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    options = ["--output", folder / "found", "--device", "cpu", "--num-images", "30", "--dataset", folder / "pictures"]
    environment = hub.environment(folder / "cache")
    return run_warm(RUN, SCRIPT, *options, *arguments, env=environment, cwd=folder, timeout=500)


def _rows(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "found" / "reproduction.json").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class First:
    """A run over the zoo, in which one model is missing and one is broken."""

    hub: LocalHub
    folder: Path
    done: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Iterator[First]:
    folder = tmp_path_factory.mktemp("zoo")
    zoo.save_pictures(folder / "pictures", 30)
    with LocalHub() as hub:
        zoo.fill(hub)
        yield First(hub, folder, _run(hub, folder))


def test_every_target_has_its_row_and_failures_stop_nothing(first):
    folder, done = first.folder, first.done
    assert done.returncode == 1, done.stderr
    rows = {(row["model"], row["image_size"]): row for row in _rows(folder)}
    assert len(rows) == TARGETS
    large = rows["facebook/dinov2-large", None]
    assert (large["verdict"], large["neurons"], large["published"]) == ("fixed", 3, 45)
    assert large["outliers after / before"] < 0.1
    assert large["drift"] < 0.05
    assert rows["facebook/dinov2-large", 518]["provenance"]["image_size"] == [518, 518]
    assert rows["google/siglip2-base-patch16-256", None]["verdict"] == "fixed"
    assert rows["facebook/dinov2-with-registers-large", None]["verdict"] == "clean"
    for name in (zoo.GIANT, zoo.BROKEN):
        assert "verdict" not in rows[name, None]
        assert rows[name, None]["error"].startswith("loading: ")
        assert name in done.stderr


def test_pictures_are_drawn_for_each_that_was_calibrated(first):
    folder = first.folder
    drawn = {path.parent.parent.name for path in folder.glob("found/*/pictures/*.png")}
    assert drawn == {
        "facebook--dinov2-large",
        "facebook--dinov2-large-518",
        "google--siglip2-base-patch16-256",
        "facebook--dinov2-with-registers-large",
    }


def test_the_table_says_what_failed_and_what_was_not_run(first):
    folder, done = first.folder, first.done
    text = (folder / "found" / "reproduction.md").read_text(encoding="utf-8")
    assert done.stdout.strip() == text.strip()
    lines = {line.split(" | ")[0].removeprefix("| "): line for line in text.splitlines() if line.startswith("| ")}
    assert "failed (loading)" in lines[zoo.GIANT]
    assert lines[zoo.GIANT].count("not run") == 12
    assert " of 45 |" in text
    assert lines["facebook/dinov2-with-registers-large"].count("not run") == 6  # nothing to patch, no dense task
    assert "before any final LayerNorm" in text


def test_a_run_goes_on_where_it_ended(first):
    folder = first.folder
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("found/*/calibration/*")}
    zoo.add(first.hub, zoo.GIANT, planted_model(neurons_per_layer={2: 2}, use_swiglu_ffn=True).model)
    scenes = zoo.save_scenes(folder / "scenes", 8)
    done = _run(first.hub, folder, "--model", zoo.GIANT, "--segmentation", scenes)
    rows = {(row["model"], row["image_size"]): row for row in _rows(folder)}
    assert rows[zoo.GIANT, None]["verdict"] == "fixed", done.stderr
    found = rows[zoo.GIANT, None]
    assert found["left out"] == {}
    assert {"base", "patched", "interpolated", "masked"} <= set(found["mIoU"])
    assert {"interpolated", "masked"} <= set(found["patched minus"])
    assert set(found["patched minus"]["masked"]) == {"value", "low", "high"}
    line = next(line for line in done.stdout.splitlines() if line.startswith(f"| {zoo.GIANT} "))
    assert "not run" not in line
    assert line.split(" | ")[-1].rstrip(" |") == f"{found['mIoU']['masked']:.4g}"
    assert "error" not in rows[zoo.GIANT, None]
    assert done.returncode == 1  # the broken one is still known as such
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    assert "mIoU" not in rows["facebook/dinov2-large", None]


def test_a_model_of_no_row_is_refused(first):
    folder = first.folder
    done = _run(first.hub, folder, "--model", "made/up")
    assert done.returncode == 2
    assert "made/up" in done.stderr


def test_the_script_stands_alone_and_says_what_it_needs():
    """It is run by its address: no neighbour of it is there."""
    text = SCRIPT.read_text(encoding="utf-8")
    assert '# /// script\n# requires-python = ">=3.10"\n# dependencies = ["ttreg_hf[evaluate]"]\n# ///\n' in text
    imported = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(text))
        for name in (
            [alias.name for alias in node.names] if isinstance(node, ast.Import)
            else [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        )
    }  # fmt: skip
    assert imported - set(sys.stdlib_module_names) == {"ttreg_hf", "transformers", "typer"}
