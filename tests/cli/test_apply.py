"""`ttreg apply`."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from ttreg_hf.images.photographs import photograph_paths
from ttreg_hf.known.known_checkpoint import PublishedOptions

from .conftest import NORM_THRESHOLD, run, succeed


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


def test_apply_in_constant_mode_writes_a_checkpoint_that_verify_finds_fixed(base, calibration, pictures, tmp_path):
    folder = tmp_path / "ck"
    found = json.loads(
        succeed("apply", base, "--calibration", calibration, "--mode", "constant", "--output", folder, "--json").out
    )
    assert found["mode"] == "constant"
    assert "test_time_register_constants" in load_file(folder / "model.safetensors")
    card = (folder / "README.md").read_text()
    assert "There is no extra token: from block" in card
    assert "constant mode: one row a block, the same for every image" in card
    (folder / "expected_outputs.json").unlink()  # no fresh interpreter has to be started
    out = succeed("verify", folder, "--dataset", pictures).out
    assert "The checkpoint is in constant mode" in out


def test_constant_mode_needs_a_calibration_that_measured_it(base, known, tmp_path):
    known(register_neurons=((2, 7), (1, 3)), options=PublishedOptions())
    ended = run("apply", base, "--mode", "constant", "--output", tmp_path / "ck")
    assert ended.code != 0
    assert "Constant mode needs the rows that calibration measures" in ended.err
    assert not (tmp_path / "ck").exists()


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


def test_a_calibration_goes_with_its_weights_and_not_with_a_name(base, calibration, tmp_path):
    shutil.copytree(base, tmp_path / "other")
    out = succeed("apply", tmp_path / "other", "--calibration", calibration, "--output", tmp_path / "ck").out
    assert f"({calibration}, verdict fixed)" in out
    assert not json.loads((tmp_path / "ck" / "calibration.json").read_text())["on_other_weights"]
    assert "Verdict: **fixed**" in (tmp_path / "ck" / "README.md").read_text(encoding="utf-8")


def test_a_calibration_made_in_half_precision_goes_with_the_whole_weights(base, pictures, tmp_path):
    options = ("--dataset", pictures, "--dtype", "bfloat16", "--device", "cpu", "--num-images", 24, "--top-k", 2)
    succeed("calibrate", base, "--output", tmp_path / "c", "--norm-threshold", NORM_THRESHOLD, *options)
    succeed("apply", base, "--calibration", tmp_path / "c", "--output", tmp_path / "ck")


@pytest.fixture
def retrained(base, tmp_path):
    """The same model after one step of somebody's training, under the same name of its folder."""
    folder = shutil.copytree(base, tmp_path / "retrained" / base.name)
    weights = load_file(folder / "model.safetensors")
    weights["encoder.layer.1.mlp.fc1.weight"] += 1e-3
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_apply_refuses_a_calibration_of_other_weights(retrained, base, calibration, tmp_path):
    ended = run("apply", retrained, "--calibration", calibration, "--output", tmp_path / "ck")
    assert ended.code == 3
    assert f"A calibration belongs to the weights that were measured, those of {base}, but this model has" in ended.err
    assert not (tmp_path / "ck").exists()


def test_forced_onto_other_weights_nothing_says_that_they_were_measured(retrained, calibration, tmp_path):
    out = succeed("apply", retrained, "--calibration", calibration, "--output", tmp_path / "ck", "--force").out
    assert f"({calibration}, not measured on these weights)" in out
    card = (tmp_path / "ck" / "README.md").read_text(encoding="utf-8")
    assert "**Not measured on these weights.**" in card
    assert "Verdict:" not in card
    assert "outliers after / before" not in card
    config = json.loads((tmp_path / "ck" / "config.json").read_text())
    assert config["register_neurons"] == [
        [layer, neuron]
        for layer, neuron, _ in json.loads((calibration / "calibration.json").read_text())["register_neurons"]
    ]
    ended = run("push", tmp_path / "ck", "org/name", "--dry-run")
    assert ended.code == 3
    assert "this model has others" in ended.err
    said = run("verify", tmp_path / "ck").out
    assert "was not measured on these weights: its threshold is not used" in said


def test_apply_refuses_a_calibration_of_a_model_with_other_widths(quiet, calibration, tmp_path):
    ended = run("apply", quiet, "--calibration", calibration, "--output", tmp_path / "ck")
    assert ended.code == 3
    assert "this model has others" in ended.err


def test_overwrite_replaces_a_checkpoint_and_nothing_else(base, calibration, tmp_path):
    arguments = ("apply", base, "--calibration", calibration, "--output", tmp_path / "ck", "--overwrite")
    succeed(*arguments)
    (tmp_path / "ck" / "README.md").write_text("old")
    succeed(*arguments)
    assert (tmp_path / "ck" / "README.md").read_text() != "old"
    (tmp_path / "ck" / "photo.jpg").write_text("mine")
    assert "holds photo.jpg, which it did not make" in run(*arguments).err
    assert (tmp_path / "ck" / "photo.jpg").read_text() == "mine"


def test_apply_moves_the_neurons_as_the_calibration_says(base, calibration, tmp_path):
    folder = shutil.copytree(calibration, tmp_path / "per_layer")
    fields = json.loads((folder / "calibration.json").read_text())
    (folder / "calibration.json").write_text(json.dumps(fields | {"shift_value": "per_layer"}))
    succeed("apply", base, "--calibration", folder, "--output", tmp_path / "ck")
    config = json.loads((tmp_path / "ck" / "config.json").read_text())
    assert (config["shift_value"], config["calibrated_patches"]) == ("per_layer", 64)
