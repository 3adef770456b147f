"""`ttreg report`."""

import json
import shutil

import pytest

from .conftest import run, succeed


@pytest.fixture
def copy(calibration, tmp_path):
    return shutil.copytree(calibration, tmp_path / "c")


def test_report_is_made_again_without_the_model(copy):
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    (copy / "report.html").unlink()
    out = succeed("report", copy).out
    assert f"wrote {copy / 'report.html'}\n" in out
    assert f"wrote {copy / 'figures' / 'norms_per_block.png'}\n" in out
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


def test_report_as_json_names_its_files(copy):
    files = json.loads(succeed("report", copy, "--json").out)["files"]
    assert files[0] == str(copy / "report.html")
    assert len(files) == 1 + len(list(copy.glob("figures/*.png")))


def test_report_of_a_folder_without_a_calibration(tmp_path):
    ended = run("report", tmp_path)
    assert ended.code == 1
    assert f"{tmp_path} has no calibration.json. Make one with `ttreg calibrate MODEL --output DIR`." in ended.err


def test_report_of_a_broken_calibration(copy):
    (copy / "calibration.json").write_text("{")
    assert "calibration.json must hold a JSON object, but it cannot be read" in run("report", copy).err


def test_report_of_broken_photographs(copy):
    (copy / "switch.safetensors").write_bytes(b"{")
    ended = run("report", copy)
    assert ended.code == 1
    assert "Calibrate again, or remove it for a report without photographs." in ended.err


def test_report_does_not_write_into_a_checkpoint(checkpoint):
    before = sorted(checkpoint.iterdir())
    assert "is a checkpoint, which is published as it is" in run("report", checkpoint).err
    assert sorted(checkpoint.iterdir()) == before
