"""One planted model and its calibration for all tests; what they write lies elsewhere."""

import dataclasses
from pathlib import Path

import pytest

from ttreg_hf.applying import add_test_time_registers
from ttreg_hf.calibration.calibration_result import CalibrationResult
from ttreg_hf.calibration.calibration_run import calibrate
from ttreg_hf.calibration.config import CalibrationConfig
from ttreg_hf.planted import PlantedModel, planted_model, synthetic_images
from ttreg_hf.publishing.checkpoint import save_checkpoint


@pytest.fixture(scope="session")
def planted() -> PlantedModel:
    return planted_model("dinov2")


@pytest.fixture(scope="session")
def result(planted: PlantedModel) -> CalibrationResult:
    settings = CalibrationConfig(num_images=24, top_k=2, last_layer=2, norm_threshold=planted.norm_threshold)
    return calibrate(planted.model, synthetic_images(24), config=settings)


@pytest.fixture
def home(planted: PlantedModel, result: CalibrationResult, tmp_path: Path) -> Path:
    """A working directory with `checkpoint`, and `unresolved`."""
    patched = add_test_time_registers(planted.model, result.register_neurons)
    save_checkpoint(patched, tmp_path / "home" / "checkpoint", calibration=result)
    unresolved = dataclasses.replace(result, verdict="unresolved")
    save_checkpoint(patched, tmp_path / "home" / "unresolved", calibration=unresolved)
    return tmp_path / "home"
