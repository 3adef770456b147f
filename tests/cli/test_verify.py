"""`ttreg verify`: a checkpoint that works, one that does not, and one that was changed."""

import json
import shutil

import pytest
import torch
from transformers import AutoModel

from ttreg_hf.applying import add_test_time_registers
from ttreg_hf.calibration.calibration_result import CalibrationResult
from ttreg_hf.loading import load_model, load_processor
from ttreg_hf.pictures.numbers import short_number
from ttreg_hf.publishing.checkpoint import save_checkpoint

from .conftest import run, succeed


@pytest.fixture
def without_record(checkpoint, tmp_path):
    """A copy without recorded outputs: no fresh interpreter has to be started."""
    folder = shutil.copytree(checkpoint, tmp_path / "ck")
    (folder / "expected_outputs.json").unlink()
    return folder


def test_verify_finds_a_working_checkpoint_fixed(checkpoint, calibration, pictures):
    before = {path: path.stat().st_mtime_ns for path in checkpoint.rglob("*")}
    ended = succeed("verify", checkpoint, "--dataset", pictures)
    for expected in (
        f"images: {pictures} (48)", "loads without ttreg_hf and gives the recorded outputs",
        "verdict: fixed", "outlier patches", "attention on the register", "zeroed, not moved", "of 10 random draws",
        "In-sample",
    ):  # fmt: skip
        assert expected in ended.out, expected
    threshold = CalibrationResult.load(calibration).norms.norm_threshold
    assert f"norm above {short_number(threshold)}" in ended.out
    assert {path: path.stat().st_mtime_ns for path in checkpoint.rglob("*")} == before


def test_verify_gives_the_numbers_of_the_calibration(without_record, calibration, pictures, tmp_path):
    """On the images that verified it."""
    expected = CalibrationResult.load(calibration).verification
    folder = tmp_path / "verified"
    folder.mkdir()
    for place in expected.places:
        shutil.copy(pictures / f"{place:02d}.png", folder)
    ended = run("verify", without_record, "--dataset", folder, "--json")
    found = json.loads(ended.out)
    assert (ended.code, found["verdict"]) == (3, "unresolved")  # of so few, though all conditions hold
    assert all(check["value"] <= check["bound"] for check in found["verification"]["checks"])
    assert found["output_difference"] is None
    assert found["num_photographs"] == found["verification"]["num_images"] == expected.num_images == 8
    assert found["verification"]["outlier_fraction_before"] == pytest.approx(expected.outlier_fraction_before)
    model = AutoModel.from_pretrained(without_record)
    places = [[effect["layer"], effect["neuron"]] for effect in found["verification"]["neurons"]]
    assert places == model.config.register_neurons


def test_verify_of_neurons_that_do_not_help_exits_3(base, calibration, pictures, tmp_path):
    stock = load_model(str(base))
    patched = add_test_time_registers(stock, [(3, 0), (3, 1)])
    save_checkpoint(patched, tmp_path / "ck", processor=load_processor(str(base)))
    (tmp_path / "ck" / "expected_outputs.json").unlink()
    norms = CalibrationResult.load(calibration).norms
    ended = run("verify", tmp_path / "ck", "--norm-threshold", norms.norm_threshold, "--dataset", pictures)
    assert ended.code == 3, ended.err
    assert "verdict: unresolved" in ended.out
    assert "because: outliers after / before is 1, allowed is 0.1" in ended.out


def test_verify_where_the_base_model_has_no_outliers_exits_3(without_record, pictures):
    for options, verdict in ((("--dataset", pictures), "clean"), ((), "unresolved")):  # the seven photographs
        ended = run("verify", without_record, "--norm-threshold", "1e6", "--json", *options)
        assert ended.code == 3
        found = json.loads(ended.out)
        assert (found["verdict"], found["verification"]) == (verdict, None)


def test_verify_keeps_the_options_of_the_checkpoint(base, without_record, tmp_path):
    """With two registers, of which each takes the sink's attention, more of it is taken than with one."""
    stock = load_model(str(base))
    neurons = AutoModel.from_pretrained(without_record).config.register_neurons
    save_checkpoint(
        add_test_time_registers(stock, neurons, num_test_time_registers=2),
        tmp_path / "two",
        processor=load_processor(str(base)),
    )
    (tmp_path / "two" / "expected_outputs.json").unlink()
    shutil.copy(without_record / "calibration.json", tmp_path / "two")
    shutil.copy(without_record / "calibration.safetensors", tmp_path / "two")
    taken = [
        json.loads(run("verify", folder, "--json").out)["verification"]["maps"]["on_register"]
        for folder in (without_record, tmp_path / "two")
    ]
    assert taken[1] > 1.1 * taken[0]


def test_verify_refuses_a_stock_model(base):
    ended = run("verify", base)
    assert ended.code == 1
    assert "Only a patched model with register neurons can be verified, got Dinov2Model without." in ended.err


def test_verify_refuses_a_changed_checkpoint(checkpoint, monkeypatch):
    outputs = json.loads((checkpoint / "expected_outputs.json").read_text())["outputs"]
    outputs[next(iter(outputs))][0][0] += 10.0
    monkeypatch.setattr("ttreg_hf.publishing.output_check.outputs_without_ttreg", lambda folder, time_limit: outputs)
    ended = run("verify", checkpoint)
    assert ended.code == 1
    assert "must give the outputs that were recorded" in ended.err


def test_base_of_a_patched_model_without_neurons_is_the_stock_model_bit_for_bit(base, without_record):
    """What `verify` compares with."""
    stock, patched = load_model(str(base)), load_model(str(without_record))
    images = torch.randn(2, 3, 112, 112)
    with torch.no_grad():
        expected = stock(images, output_hidden_states=True)
        given = add_test_time_registers(patched, [])(images, output_hidden_states=True)
    assert all(torch.equal(*pair) for pair in zip(expected.hidden_states, given.hidden_states, strict=True))
    assert torch.equal(expected.pooler_output, given.pooler_output)
