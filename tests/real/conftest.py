"""The real checkpoint and the photographs in the folder that TTREG_REAL names."""

import os
from pathlib import Path

import pytest
from transformers import AutoModel, PreTrainedModel

from ttreg_hf import add_test_time_registers
from ttreg_hf.loading import load_processor

BY_HAND = ((8, 3), (9, 700), (10, 1535))  # any: the model has no outliers to treat


@pytest.fixture(scope="session")
def checkpoint() -> Path:
    return Path(os.environ["TTREG_REAL"]) / "checkpoint"


@pytest.fixture(scope="session")
def photographs() -> Path:
    return Path(os.environ["TTREG_REAL"]) / "photographs"


@pytest.fixture(scope="session")
def model(checkpoint: Path) -> PreTrainedModel:
    return AutoModel.from_pretrained(checkpoint).eval()


@pytest.fixture(scope="session")
def patched(model: PreTrainedModel, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that was patched by hand, with its processor."""
    folder = tmp_path_factory.mktemp("real") / "patched"
    add_test_time_registers(model, BY_HAND).save_pretrained(folder)
    load_processor(str(checkpoint)).save_pretrained(folder)
    return folder
