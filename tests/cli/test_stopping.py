"""What is left when a command is stopped, or another one writes the same output: no half, and no result lost."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ttreg_hf.calibration.run_state import StateStore
from ttreg_hf.images.photographs import photograph_paths
from ttreg_hf.report import calibration_folder

from .conftest import NORM_THRESHOLD, run, succeed


def start(*arguments: object, **variables: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "ttreg_hf", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **variables},
    )


def wait_for(folder: Path, pattern: str, child: subprocess.Popen) -> None:
    deadline = time.monotonic() + 150
    while not list(folder.glob(pattern)) and time.monotonic() < deadline and child.poll() is None:
        time.sleep(0.02)


def test_sigterm_ends_a_command_as_ctrl_c_does(base, calibration, tmp_path):
    child = start("apply", base, "--calibration", calibration, "--output", tmp_path / "ck")
    wait_for(tmp_path, ".ck.*.part", child)
    child.send_signal(signal.SIGTERM)
    _, err = child.communicate(timeout=150)
    assert child.returncode == 130
    assert err.splitlines()[-1] == "ttreg: interrupted; nothing half-written remains."
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_import_is_no_crash(base, tmp_path):
    """CPython remembers an interrupt that has passed through `exec`, and ends with another code."""
    source = f"""
import sys
from ttreg_hf.cli import main
from ttreg_hf.cli import inspect_command

def interrupted(*_, **__):
    exec("raise KeyboardInterrupt")

inspect_command.open_images = interrupted
sys.exit(main(["inspect", {str(base)!r}]))
"""
    (tmp_path / "interrupted.py").write_text(source)
    child = subprocess.run(
        [sys.executable, "-m", "interrupted"], capture_output=True, text=True, timeout=150, cwd=tmp_path
    )
    assert (child.returncode, child.stderr) == (130, "ttreg: interrupted; nothing half-written remains.\n")


def test_of_two_commands_at_once_exactly_one_exits_0(base, calibration, tmp_path):
    children = [start("apply", base, "--calibration", calibration, "--output", tmp_path / "ck") for _ in range(2)]
    said = [child.communicate(timeout=300)[1] for child in children]
    assert sorted(child.returncode for child in children) == [0, 1]
    refusal = said[[child.returncode for child in children].index(1)]
    assert "another one is writing" in refusal or "exists and is not empty" in refusal
    assert [path.name for path in tmp_path.iterdir()] == ["ck"]
    assert (tmp_path / "ck" / "model.safetensors").is_file()


@pytest.fixture
def by_fours(base, tmp_path) -> list:
    """Arguments of a calibration that saves a state of four images."""
    return [
        *("calibrate", base, "--output", tmp_path / "c", "--norm-threshold", NORM_THRESHOLD, "--top-k", 2),
        *("--last-layer", 2, "--num-images", 7, "--save-every", 4),
    ]


def test_an_interrupted_calibration_names_its_state_and_goes_on(by_fours, tmp_path, monkeypatch):
    save = StateStore.save

    def save_and_stop(store, state):
        save(store, state)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(StateStore, "save", save_and_stop)
    ended = run(*by_fours)
    assert ended.code == 130
    assert (
        f"interrupted. What was done is kept in {tmp_path / 'c.state'}: the same command with `--resume`" in ended.err
    )
    assert [path.name for path in tmp_path.iterdir()] == ["c.state"]
    monkeypatch.undo()
    assert "resumed after 4 images" in succeed(*by_fours, "--resume").out
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_states_stay_until_the_result_is_on_disk(by_fours, tmp_path, monkeypatch):
    def fail(folder, result):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(calibration_folder, "write_report", fail)
    ended = run(*by_fours)
    assert ended.code == 1
    assert f"The disk is full in {tmp_path}. Free some space there, or give an output on another disk." in ended.err
    assert [path.name for path in tmp_path.iterdir()] == ["c.state"]
    monkeypatch.undo()
    assert "resumed after 4 images" in succeed(*by_fours, "--resume").out
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_states_stay_where_something_has_appeared_at_the_output(by_fours, tmp_path, monkeypatch):
    write_report = calibration_folder.write_report

    def put_something_there(folder, result):
        write_report(folder, result)
        (tmp_path / "c").mkdir()
        (tmp_path / "c" / "photo.jpg").write_text("mine")

    monkeypatch.setattr(calibration_folder, "write_report", put_something_there)
    ended = run(*by_fours)
    assert ended.code == 1
    assert f"The finished output lies in {tmp_path / 'c-1'}." in ended.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "c-1", "c.state"]
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["photo.jpg"]
    assert json.loads((tmp_path / "c-1" / "calibration.json").read_text())["verdict"]


@pytest.mark.parametrize("verb", ["apply", "calibrate", "quickstart"])
def test_outputs_that_cannot_take_a_folder_are_refused_before_the_work(base, calibration, tmp_path, monkeypatch, verb):
    given = {"apply": (base, "--calibration", calibration), "calibrate": (base,), "quickstart": ()}[verb]
    (tmp_path / "photos").mkdir()
    for path in photograph_paths()[:4]:
        shutil.copy(path, tmp_path / "photos")
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    monkeypatch.chdir(tmp_path / "photos")
    before = sorted(tmp_path.rglob("*"))
    for place, message in (
        (tmp_path / "photos", "is the current folder"),
        (".", "is the current folder"),
        (tmp_path / "link", "is a link to"),
        (tmp_path / "link" / ".." / "photos", "is the current folder"),
    ):
        ended = run(verb, *given, "--output", place, "--overwrite")
        assert (ended.code, ended.out) == (1, "")
        assert message in ended.err
    monkeypatch.chdir(tmp_path)
    ended = run(verb, *given, "--output", "photos", "--overwrite")
    assert "and 3 more, which it did not make. Move that away" in ended.err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_base_model_is_never_overwritten_by_its_patched_twin(base, calibration, tmp_path):
    model = shutil.copytree(base, tmp_path / "model")
    ended = run("apply", model, "--calibration", calibration, "--output", model, "--overwrite")
    assert ended.code == 1
    assert "holds config.json and 2 more, which it did not make" in ended.err
    assert sorted(path.name for path in model.iterdir()) == sorted(path.name for path in base.iterdir())


def test_apply_needs_space_for_the_weights(base, calibration, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=100_000_000)
    monkeypatch.setattr("ttreg_hf.writing.disk.shutil.disk_usage", lambda path: usage)
    monkeypatch.setattr("transformers.PreTrainedModel.get_memory_footprint", lambda model: 200_000_000)
    ended = run("apply", base, "--calibration", calibration, "--output", tmp_path / "ck")
    assert ended.code == 1
    assert "200 MB will be written, but 100 MB are free in" in ended.err
    assert list(tmp_path.iterdir()) == []
