"""`ttreg calibrate`."""

import functools
import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from ttreg_hf.calibration.calibration_result import CalibrationResult
from ttreg_hf.images.photographs import photograph_paths
from ttreg_hf.images.processes import Processes
from ttreg_hf.known.known_checkpoint import Recipe
from ttreg_hf.writing import whole_directory

from .conftest import run, succeed, without_waiting


def test_calibrate_writes_its_files_and_says_what_comes_next(base, pictures, tmp_path):
    options = ("--top-k", "2", "--norm-threshold", "60", "--dataset", pictures)
    out = succeed("calibrate", base, "--output", tmp_path / "c", *options).out
    result = CalibrationResult.load(tmp_path / "c")
    assert result.verdict == "fixed"
    assert {neuron.layer for neuron in result.register_neurons} == {2}
    for expected in (
        f"images: {pictures} (48)", "verdict: fixed (register neurons", "In-sample", "outlier patches",
        "JPEG of quality 90", "moved by one patch",
        "cosine of the pooled feature",
        f"{result.register_neurons[0].neuron}: ", f"wrote {tmp_path / 'c' / 'calibration.json'}",
        f"Next: ttreg apply {base} --calibration {tmp_path / 'c'} --output",
    ):  # fmt: skip
        assert expected in out, expected
    assert sorted(path.name for path in (tmp_path / "c").glob("[!.]*")) == [
        "calibration.json", "calibration.safetensors", "figures", "report.html", "switch.safetensors",
    ]  # fmt: skip
    assert "The neuron switch" in (tmp_path / "c" / "report.html").read_text(encoding="utf-8")


def test_calibrate_passes_every_setting_on(base, tmp_path):
    given = {
        "num_images": 6, "batch_size": 4, "norm_threshold": 60.0, "detection_layer": 3, "first_layer": 1,
        "last_layer": 2, "top_k": 1, "max_active_fraction": 0.5, "rounds": 1, "budget": 100, "seed": 3,
    }  # fmt: skip
    options = [word for name, value in given.items() for word in ("--" + name.replace("_", "-"), value)]
    ended = succeed("calibrate", base, "--output", tmp_path / "c", "--json", "--detect-on-prefix", *options)
    found = json.loads(ended.out)
    assert found["config"] == given | {"detect_on_prefix": True}
    assert found["chosen"] == []
    assert found["files"] == sorted(str(path) for path in (tmp_path / "c").rglob("[!.]*") if path.is_file())


def test_recipe_gives_the_published_settings_and_options_win(base, known, tmp_path):
    known(recipe=Recipe(num_images=5, norm_threshold=70.0, last_layer=2, top_k=3, source="a paper"))
    ended = succeed(
        "calibrate", base, "--recipe", "--top-k", "1", "--dataset", photograph_paths()[0].parent,
        "--output", tmp_path / "c", "--json",
    )  # fmt: skip
    config = json.loads(ended.out)["config"]
    assert (config["num_images"], config["norm_threshold"], config["top_k"]) == (5, 70.0, 1)


def test_clean_model_is_a_result_not_a_failure(quiet, pictures, tmp_path):
    out = succeed("calibrate", quiet, "--output", tmp_path / "c", "--dataset", pictures).out
    said = f"no high-norm outlier patches in 48 photographs of {pictures} at 112 px"
    assert f"verdict: clean ({said} (95 %: fewer than 6.1 % of such photographs have one). Low-norm" in out
    assert "Next: nothing." in out
    assert CalibrationResult.load(tmp_path / "c").register_neurons == ()
    page = (tmp_path / "c" / "report.html").read_text(encoding="utf-8")
    assert said in page
    assert 'name="moved"' not in page


@pytest.mark.parametrize("options", [(), ("--num-images", 2)])
def test_the_bundled_photographs_alone_show_nothing(base, tmp_path, options):
    """Seven, or two, whatever they look like."""
    out = succeed("calibrate", base, "--output", tmp_path / "c", *options).out
    assert "verdict: unresolved: too few images" in out
    assert "would do" in out
    assert f"Next: ttreg calibrate {base} --output {tmp_path / 'c'} --overwrite --dataset FOLDER, with more" in out
    assert "95 % interval of" not in out
    page = (tmp_path / "c" / "report.html").read_text(encoding="utf-8")
    assert "unresolved: too few images" in page
    assert run("apply", base, "--calibration", tmp_path / "c", "--output", tmp_path / "ck").code == 3


def test_other_ranks_write_nothing(base, calibration, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    result, end = CalibrationResult.load(calibration), []
    accelerator = SimpleNamespace(device="cpu", is_main_process=False, end_training=lambda: end.append(True))
    monkeypatch.setattr(Processes, "launched", lambda device=None: Processes(1, 2, accelerator))
    monkeypatch.setattr("ttreg_hf.report.calibration_folder.calibrate", lambda *args, **options: result)
    ended = succeed("calibrate", base, "--output", tmp_path / "c")
    assert (ended.out, ended.err) == ("", "")
    assert end == [True]
    assert list(tmp_path.iterdir()) == []


def interrupt_after_half(self, directory: Path) -> None:
    (directory / "calibration.json").write_text("{")
    raise KeyboardInterrupt


@pytest.mark.parametrize("before", [None, "old"])
def test_interrupt_while_writing_leaves_what_was_there_before(base, calibration, tmp_path, monkeypatch, before):
    result = CalibrationResult.load(calibration)
    monkeypatch.setattr("ttreg_hf.report.calibration_folder.calibrate", lambda *args, **options: result)
    monkeypatch.setattr(CalibrationResult, "save", interrupt_after_half)
    if before:
        with whole_directory(tmp_path / "c") as made_before:
            (made_before / "kept").write_text(before)
    ended = run("calibrate", base, "--output", tmp_path / "c", "--overwrite")
    assert ended.code == 130
    assert without_waiting(ended.err) == "ttreg: interrupted; nothing half-written remains.\n"
    left = [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))]
    assert left == (["c", "c/.ttreg-made.json", "c/kept"] if before else [])


def test_ctrl_c_during_calibration_exits_130_and_leaves_nothing(base, tmp_path):
    """In a child whose stderr is a terminal: progress shows when to interrupt, and nothing else may be said there."""
    images = tmp_path / "images"
    images.mkdir()
    photograph = photograph_paths()[0]
    for number in range(3000):  # far more than are done before the signal comes
        (images / f"{number}.jpg").symlink_to(photograph)
    arguments = ["calibrate", base, "--output", tmp_path / "c", "--dataset", images, "--num-images", 3000]
    master, terminal = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-m", "ttreg_hf", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=terminal, env={**os.environ, "TERM": "xterm"}, text=True,
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # a background job ignores it
    )  # fmt: skip
    os.close(terminal)
    said = read_until(master, "inspect")
    child.send_signal(signal.SIGINT)
    said += read_until(master, "remains.")  # first: a child whose terminal nobody reads waits
    out, _ = child.communicate(timeout=150)
    os.close(master)
    assert child.returncode == 130
    assert out == f"1 process, cpu, images: {images} (3000)\n"
    assert "/s" in said
    assert "ttreg: interrupted" in said
    assert "Traceback" not in said
    assert "torchvision" not in said  # a notice of transformers
    shutil.rmtree(images)
    assert list(tmp_path.iterdir()) == []


def read_until(terminal: int, text: str) -> str:
    """What a terminal shows, until a text has come or 150 seconds have passed."""
    said, deadline = "", time.monotonic() + 150
    while text not in said and time.monotonic() < deadline:
        if select.select([terminal], [], [], 0.2)[0]:
            try:
                said += os.read(terminal, 4096).decode(errors="replace")
            except OSError:  # the other side is closed
                break
    return said
