"""Files of a calibration that are damaged or were edited by hand are refused in one message."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ttreg_hf.calibration.calibration_result import JSON_FILE, TENSOR_FILE, CalibrationResult

from .test_calibration_result import _result


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    _result().save(tmp_path)
    return tmp_path


def _edit(folder: Path, path: str, value: object) -> None:
    """Set the value at a path such as `norms.max.0`."""
    fields = json.loads((folder / JSON_FILE).read_text())
    *parents, last = [int(name) if name.isdigit() else name for name in path.split(".")]
    place = fields
    for name in parents:
        place = place[name]
    place[last] = value
    (folder / JSON_FILE).write_text(json.dumps(fields))


def _refusal(folder: Path) -> str:
    with pytest.raises(ValueError, match=rf"The files in {folder} are not what `ttreg calibrate` writes") as told:
        CalibrationResult.load(folder)
    assert str(told.value).endswith("Calibrate again.")
    assert "\n" not in str(told.value)
    return str(told.value)


def test_what_was_saved_is_consistent(folder):
    CalibrationResult.load(folder)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("register_neurons.0.0", 99, "names layer 99, but the `scores` have 3 (0 to 2)"),
        ("register_neurons.0.0", -1, "names layer -1"),
        ("register_neurons.0.1", 8, "names neuron 8, but the `scores` have 8 (0 to 7)"),
        ("register_neurons.0.2", float("nan"), "`register_neurons[0].score` is finite, got nan"),
        ("register_neurons.0.2", float("inf"), "is finite, got inf"),
        ("register_neurons.0", [1], "ValueError"),
        ("register_neurons", 3, "TypeError"),
        ("norms.detection_layer", 99, "names detection_layer 99"),
        ("norms.max", [1.0], "`norms.max` holds a finite number for each of 3 layers"),
        ("norms.median.1", float("nan"), "`norms.median` holds a finite number for each of 3 layers"),
        ("outlier_rule.detection_layer", 3, "names detection_layer 3"),
        ("verification.neurons.0.layer", 99, "names layer 99"),
        ("candidates.0.register_neuron.neuron", 99, "names neuron 99"),
        ("selections.0.register_neurons.0.layer", 99, "names layer 99"),
        ("config.detection_layer", -4, "names detection_layer -4"),
        ("verdict", "good", "`verdict` is one of fixed, clean, unresolved, got 'good'"),
        ("shift_value", "some", "`shift_value` is one of per_neuron, per_layer, got 'some'"),
        ("norms", None, "norms must be an object"),
        ("provenance.bad_images", "all", "provenance.bad_images must be a list"),
    ],
)
def test_values_that_no_calibration_gives(folder, path, value, message):
    _edit(folder, path, value)
    assert message in _refusal(folder)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (torch.zeros(24, dtype=torch.float64), "got torch.float64 of shape (24,)"),
        (torch.zeros(3, 8), "got torch.float32 of shape (3, 8)"),
        (torch.zeros(0, 8, dtype=torch.float64), "of shape (0, 8)"),
        (torch.full((3, 8), float("nan"), dtype=torch.float64), "`scores` are finite and not negative"),
        (torch.full((3, 8), float("inf"), dtype=torch.float64), "`scores` are finite and not negative"),
        (torch.full((3, 8), -1.0, dtype=torch.float64), "`scores` are finite and not negative"),
        (torch.zeros(2, 8, dtype=torch.float64), "but the `scores` have 2"),
    ],
)
def test_scores_that_no_calibration_gives(folder, scores, message):
    save_file({"scores": scores}, folder / TENSOR_FILE)
    assert message in _refusal(folder)


def test_files_that_hold_something_else(folder):
    save_file({"other": load_file(folder / TENSOR_FILE)["scores"]}, folder / TENSOR_FILE)
    assert "KeyError" in _refusal(folder)
    (folder / TENSOR_FILE).write_bytes(b"{")
    assert "SafetensorError" in _refusal(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "[" * 100_000, '{"format": 1}', "\x00"])
def test_json_that_is_no_calibration(folder, text):
    (folder / JSON_FILE).write_text(text)
    with pytest.raises(ValueError, match=rf"{folder / JSON_FILE} .*Calibrate again, or install the version"):
        CalibrationResult.load(folder)


def test_a_missing_folder_is_said_to_be_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no folder .*/nowhere\. Give one that `ttreg calibrate"):
        CalibrationResult.load(tmp_path / "nowhere")
