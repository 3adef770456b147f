"""`ttreg export`: the folder, what is printed, and what is refused."""

import json
import shutil

import pytest

from .conftest import run, succeed

pytestmark = [
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning"),  # torch's own
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of exporters' packages
    pytest.mark.filterwarnings("ignore::UserWarning"),  # likewise
]


@pytest.fixture(scope="module")
def program(checkpoint, tmp_path_factory):
    """The folder, and what was said as JSON."""
    folder = tmp_path_factory.mktemp("program") / "onnx"
    return folder, json.loads(succeed("export", checkpoint, "--output", folder, "--json").out)


def test_export_writes_a_program_and_says_how_near_it_is(checkpoint, program):
    folder, told = program
    assert told["export_format"] == "onnx"
    assert not told["parity"]["int8"]
    assert {each["name"] for each in told["parity"]["outputs"]} == {"last_hidden_state", "pooler_output"}
    names = {path.name for path in folder.iterdir()}
    assert {"model.onnx", "parity.json", "preprocessor_config.json"} <= names
    for path in folder.glob("*.json"):
        assert str(checkpoint) not in path.read_text()
    refused = run("export", checkpoint, "--output", folder)
    assert (refused.code, "exists and is not empty" in refused.err) == (1, True)


def test_int8_takes_images(checkpoint, pictures, tmp_path):
    for options in (["--int8"], ["--dataset", pictures]):
        ended = run("export", checkpoint, "--output", tmp_path / "onnx", *options)
        assert (ended.code, "go together" in ended.err) == (2, True)


def test_int8_says_what_it_was_scaled_by(checkpoint, program, pictures, tmp_path, monkeypatch):
    """Of a program in float32: tests/publishing/test_export.py makes one in int8."""
    copied = lambda part, inputs, chosen, folder, scaled_by: shutil.copytree(program[0], folder, dirs_exist_ok=True)  # noqa: E731
    monkeypatch.setattr("ttreg_hf.publishing.export.write_program", copied)
    ended = succeed(
        "export", checkpoint, "--output", tmp_path / "onnx", "--int8", "--dataset", pictures, "--num-images", 9
    )
    assert f"measured on images: {pictures} (9)" in ended.out
    assert "as onnx, int8, beside torch on 7 photographs" in ended.out


def test_a_stock_model_is_no_checkpoint(base, tmp_path):
    ended = run("export", base, "--output", tmp_path / "onnx")
    assert (ended.code, "takes a patched model" in ended.err) == (1, True)
