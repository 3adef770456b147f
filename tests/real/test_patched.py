"""A real model that was patched by hand: saved, loaded by strangers, pushed, measured, drawn."""

import json
import os
from pathlib import Path

import pytest
import torch
from cli.conftest import run, succeed
from evaluation.scenes import scenes
from local_hub import LocalHub
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModel, PreTrainedModel
from warm import run_warm

from ttreg_hf import add_test_time_registers
from ttreg_hf.evaluation.evaluation_run import evaluate

from .conftest import BY_HAND

pytestmark = pytest.mark.real

STRANGER = """
import sys
sys.modules["ttreg_hf"] = None  # as if it were not installed
import torch
from transformers import AutoModel
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
pixels = torch.load(sys.argv[2])
with torch.no_grad():
    torch.save(model(pixels).last_hidden_state, sys.argv[3])
"""


@pytest.fixture(scope="module")
def pixels(checkpoint: Path, photographs: Path) -> torch.Tensor:
    paths = sorted((photographs / "report").glob("*.jpg"))[:2]
    images = [Image.open(path).convert("RGB") for path in paths]
    return AutoImageProcessor.from_pretrained(checkpoint)(images, return_tensors="pt")["pixel_values"]


@torch.no_grad()
def _features(model: PreTrainedModel, pixels: torch.Tensor) -> torch.Tensor:
    return model(pixels).last_hidden_state


def test_switched_off_it_is_the_base_model_bit_for_bit(model, patched, pixels):
    loaded = AutoModel.from_pretrained(patched).eval()
    assert sorted(map(tuple, loaded.config.register_neurons)) == sorted(BY_HAND)
    base = _features(model, pixels)
    assert not torch.equal(_features(loaded, pixels), base)
    with loaded.disable_test_time_registers():
        assert torch.equal(_features(loaded, pixels), base)


def test_its_weight_file_has_the_base_models_names_and_values(patched, checkpoint):
    ours, base = (load_file(folder / "model.safetensors") for folder in (patched, checkpoint))
    assert set(ours) == set(base)
    assert all(torch.equal(ours[name], base[name]) for name in base)


def test_a_stranger_loads_it_without_ttreg(model, patched, pixels, tmp_path):
    torch.save(pixels, tmp_path / "pixels.pt")
    arguments = (patched, tmp_path / "pixels.pt", tmp_path / "found.pt")
    child = run_warm(STRANGER, *arguments, env=os.environ, cwd=tmp_path)
    assert child.returncode == 0, child.stderr
    ours = _features(add_test_time_registers(model, BY_HAND), pixels)
    torch.testing.assert_close(torch.load(tmp_path / "found.pt"), ours, rtol=1e-5, atol=1e-5)


def test_it_is_pushed_and_loaded_by_name(hub: LocalHub, model, patched, pixels, tmp_path):
    source = f"from transformers import AutoModel; import ttreg_hf; AutoModel.from_pretrained({str(patched)!r})"
    hub.run_python(f"{source}.push_to_hub('org/real-ttreg')", tmp_path / "one", token=hub.token)
    torch.save(pixels, tmp_path / "pixels.pt")
    arguments = ["org/real-ttreg", str(tmp_path / "pixels.pt"), str(tmp_path / "found.pt")]
    hub.run_python(f"import sys; sys.argv[1:] = {arguments!r}\n{STRANGER}", tmp_path / "two")
    ours = _features(add_test_time_registers(model, BY_HAND), pixels)
    torch.testing.assert_close(torch.load(tmp_path / "found.pt"), ours, rtol=1e-5, atol=1e-5)


def test_it_is_evaluated_beside_its_base(model):
    found = evaluate(add_test_time_registers(model, BY_HAND), scenes(4), task="segmentation")
    by_row = {figure.row: figure.value for figure in found.figures if figure.metric == "mIoU"}
    assert {"base", "patched"} <= set(by_row)
    assert all(0 < value < 1 for value in by_row.values())


def test_verifying_says_that_there_are_no_outliers_to_take_away(patched, photographs):
    told = run("verify", patched, "--dataset", photographs / "calibrate", "--num-images", "8")
    assert told.code != 0
    assert "outlier" in (told.out + told.err).lower()


def test_it_is_drawn(patched, photographs, tmp_path):
    photograph = sorted((photographs / "report").glob("*.jpg"))[0]
    told = succeed("visualize", patched, photograph, "--output", tmp_path, "--json")
    (picture,) = json.loads(told.out)["pictures"]
    with Image.open(picture) as drawn:
        assert drawn.width == 1200
