"""`from_pretrained` with a quantisation of torchao: a patched checkpoint is quantised while it is loaded."""

import copy
import os

import pytest
import torch
from transformers import AutoModel, TorchAoConfig
from warm import run_warm

from ttreg_hf import add_test_time_registers
from ttreg_hf.measuring.linear_ranges import linear_layers
from ttreg_hf.measuring.tower import VisionTower
from ttreg_hf.planted import planted_model
from ttreg_hf.publishing.checkpoint import save_checkpoint

quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
Int8DynamicActivationInt8WeightConfig = quantization.Int8DynamicActivationInt8WeightConfig
quantize_ = quantization.quantize_

STRANGER = """
import sys

sys.modules["ttreg_hf"] = None  # as if it were not installed
import torch
from torchao.quantization import Int8DynamicActivationInt8WeightConfig
from transformers import AutoModel, TorchAoConfig

quantised = TorchAoConfig(Int8DynamicActivationInt8WeightConfig())
model = AutoModel.from_pretrained("checkpoint", quantization_config=quantised, trust_remote_code=True).eval()
with torch.no_grad():
    torch.save(model(torch.load("pixels.pt")).last_hidden_state, "found.pt")
    with model.disable_test_time_registers():
        torch.save(model(torch.load("pixels.pt")).last_hidden_state, "base.pt")
print(type(model).__name__, type(model.encoder.layer[2].mlp.fc2.weight).__name__)
"""


@pytest.fixture(scope="module")
def known():
    return planted_model("dinov2")


@pytest.fixture(scope="module")
def checkpoint(known, tmp_path_factory):
    patched = add_test_time_registers(known.model, known.register_neurons)
    return save_checkpoint(patched, tmp_path_factory.mktemp("home") / "checkpoint")


@torch.no_grad()
def quantised_by_hand(model, pixels):
    twin = copy.deepcopy(model)
    quantize_(twin, Int8DynamicActivationInt8WeightConfig())
    return twin(pixels).last_hidden_state


def test_a_stranger_loads_a_patched_checkpoint_quantised(known, checkpoint):
    """On and off it gives what the patched model and the base model give, quantised by torchao itself."""
    home, pixels = checkpoint.parent, known.sample[:4]
    torch.save(pixels, home / "pixels.pt")
    ended = run_warm(STRANGER, env=os.environ, cwd=home)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert ended.stdout.split() == ["Dinov2TTRegModel", "Int8Tensor"]
    found, base = (torch.load(home / f"{name}.pt") for name in ("found", "base"))
    patched = add_test_time_registers(known.model, known.register_neurons)
    assert torch.allclose(found, quantised_by_hand(patched, pixels), atol=1e-4)
    assert torch.allclose(base, quantised_by_hand(known.model, pixels), atol=1e-4)
    assert (found - base).abs().max() > 0.1


def test_all_linear_layers_of_the_blocks_are_quantised_while_loading(known, checkpoint):
    config = TorchAoConfig(Int8DynamicActivationInt8WeightConfig())
    loaded = AutoModel.from_pretrained(checkpoint, quantization_config=config).eval()
    linears = linear_layers(VisionTower.of(loaded))
    assert len(linears) == 36
    assert all(type(each.weight).__name__ == "Int8Tensor" for each in linears.values())
    assert loaded.registers.active
