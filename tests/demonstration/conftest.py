"""One planted model, patched with its neurons, and its demonstration, made once."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from transformers import PreTrainedModel

from ttreg_hf.applying import add_test_time_registers
from ttreg_hf.demonstration.demo import Demo, show
from ttreg_hf.demonstration.subject import Subject
from ttreg_hf.planted import planted_model

THRESHOLD, LAYER = 20.0, 3


@dataclass(frozen=True)
class Shown:
    """What was demonstrated."""

    base: PreTrainedModel
    patched: PreTrainedModel
    images: list[Tensor]
    demo: Demo


def marked(model: PreTrainedModel, register_neurons: Any = None, *, norm_threshold: float = THRESHOLD) -> Subject:
    """With the outliers that the planted model is known to have."""
    subject = Subject.open(model, register_neurons)
    return replace(subject, detection_layer=LAYER, norm_threshold=norm_threshold)


@pytest.fixture(scope="session")
def shown() -> Shown:
    planted = planted_model(neurons_per_layer={1: 1, 2: 2})
    patched = add_test_time_registers(planted.model, planted.register_neurons)
    images = list(planted.sample[:2])
    return Shown(planted.model, patched, images, show(marked(patched), images))


@pytest.fixture
def page(shown: Shown, tmp_path: Path) -> Path:
    return shown.demo.save(tmp_path / "page")
