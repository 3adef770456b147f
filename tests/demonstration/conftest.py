"""One planted model, patched with its neurons, and its demonstration, made once."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from torch import Tensor
from transformers import PreTrainedModel

import ttreg_hf
from ttreg_hf.applying import add_test_time_registers
from ttreg_hf.demonstration.demo import Demo
from ttreg_hf.planted import planted_model

THRESHOLD, LAYER = 20.0, 3


@dataclass(frozen=True)
class Shown:
    """What was demonstrated."""

    base: PreTrainedModel
    patched: PreTrainedModel
    images: list[Tensor]
    demo: Demo


@pytest.fixture(scope="session")
def shown() -> Shown:
    planted = planted_model(neurons_per_layer={1: 1, 2: 2})
    patched = add_test_time_registers(planted.model, planted.register_neurons)
    images = list(planted.sample[:2])
    made = ttreg_hf.demo(patched, images, norm_threshold=THRESHOLD, detection_layer=LAYER)
    return Shown(planted.model, patched, images, made)


@pytest.fixture
def page(shown: Shown, tmp_path: Path) -> Path:
    return shown.demo.save(tmp_path / "page")
