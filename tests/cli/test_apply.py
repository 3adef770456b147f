"""`ttreg apply`."""

import json
import shutil

import pytest
from transformers import AutoModel

from ttreg_hf.images.photographs import photograph_paths
from ttreg_hf.known.known_checkpoint import PublishedOptions

from .conftest import run, succeed


@pytest.fixture
def judged(calibration, tmp_path):
    """A copy of the calibration with another verdict."""

    def judge(verdict):
        folder = tmp_path / verdict
        shutil.copytree(calibration, folder)
        fields = json.loads((folder / "calibration.json").read_text())
        neurons = [] if verdict == "clean" else fields["register_neurons"]
        (folder / "calibration.json").write_text(
            json.dumps(fields | {"verdict": verdict, "register_neurons": neurons})
        )
        return folder

    return judge


def test_apply_writes_a_checkpoint_and_six_lines_that_load_it(base, calibration, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = succeed("apply", base, "--calibration", calibration, "--output", "ck").out
    shutil.copy(photograph_paths()[0], "my.jpg")
    lines = [line.strip() for line in out.partition("To load it:\n")[2].splitlines()]
    assert len(lines) == 6
    scope: dict = {}
    exec("\n".join(lines), scope)
    assert tuple(scope["features"].shape) == (1, 1 + 64, 64)
    assert type(scope["model"]).__name__ == "Dinov2TTRegModel"
    for name in ("README.md", "config.json", "model.safetensors", "preprocessor_config.json", "calibration.json"):
        assert f"wrote ck/{name}" in out


def test_apply_as_json_tells_the_files(base, calibration, tmp_path):
    ended = succeed("apply", base, "--calibration", calibration, "--output", tmp_path / "ck", "--json")
    found = json.loads(ended.out)
    assert found["register_neurons"] >= 1
    assert str(tmp_path / "ck" / "config.json") in found["files"]


def test_apply_without_calibration_takes_published_neurons_and_their_options(base, known, tmp_path):
    known(register_neurons=((2, 7), (1, 3)), options=PublishedOptions(shift_value="per_layer"))
    out = succeed("apply", base, "--output", tmp_path / "ck").out
    assert "2 register neurons" in out
    assert "not verified by this project" in out
    config = AutoModel.from_pretrained(tmp_path / "ck").config
    assert config.register_neurons == [[2, 7], [1, 3]]
    assert config.shift_value == "per_layer"


@pytest.mark.parametrize("verdict", ["clean", "unresolved"])
def test_apply_refuses_a_verdict_that_is_not_fixed(base, judged, tmp_path, verdict):
    ended = run("apply", base, "--calibration", judged(verdict), "--output", tmp_path / "ck")
    assert ended.code == 3
    assert f"is {verdict}. `--force`" in ended.err
    assert not (tmp_path / "ck").exists()


@pytest.mark.parametrize("verdict", ["clean", "unresolved"])
def test_force_patches_whatever_the_verdict_is(base, judged, tmp_path, verdict):
    succeed("apply", base, "--calibration", judged(verdict), "--output", tmp_path / "ck", "--force")
    assert (tmp_path / "ck" / "config.json").is_file()


def test_apply_notes_a_calibration_of_another_model(base, calibration, tmp_path):
    shutil.copytree(base, tmp_path / "other")
    out = succeed("apply", tmp_path / "other", "--calibration", calibration, "--output", tmp_path / "ck").out
    assert f"was made for {base}, not for {tmp_path / 'other'}" in out


def test_overwrite_replaces_a_checkpoint(base, calibration, tmp_path):
    (tmp_path / "ck").mkdir()
    (tmp_path / "ck" / "stale").touch()
    succeed("apply", base, "--calibration", calibration, "--output", tmp_path / "ck", "--overwrite")
    assert not (tmp_path / "ck" / "stale").exists()


def test_apply_moves_the_neurons_as_the_calibration_says(base, calibration, tmp_path):
    folder = shutil.copytree(calibration, tmp_path / "per_layer")
    fields = json.loads((folder / "calibration.json").read_text())
    (folder / "calibration.json").write_text(json.dumps(fields | {"shift_value": "per_layer"}))
    succeed("apply", base, "--calibration", folder, "--output", tmp_path / "ck")
    config = json.loads((tmp_path / "ck" / "config.json").read_text())
    assert (config["shift_value"], config["calibrated_patches"]) == ("per_layer", 64)
