"""One planted model, its calibration and its report, made once; tests that write copy the folder."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from torch import Tensor
from transformers import PreTrainedModel

from ttreg_hf.calibration.calibration_result import CalibrationResult
from ttreg_hf.calibration.calibration_run import calibrate
from ttreg_hf.calibration.config import CalibrationConfig
from ttreg_hf.images.batches import ImageBatches
from ttreg_hf.images.data_sets import NamedImages
from ttreg_hf.images.data_source import DataSource
from ttreg_hf.planted import planted_model, synthetic_images
from ttreg_hf.report.calibration_folder import record_calibrated_switch, write_report
from ttreg_hf.report.neuron_switch import NeuronSwitch
from ttreg_hf.report.switch_file import save_switch

NOTE = "A planted <toy> model."


@dataclass(frozen=True)
class Reported:
    """A calibration with its report."""

    model: PreTrainedModel
    images: Tensor
    result: CalibrationResult
    switch: NeuronSwitch
    folder: Path

    def batches(self) -> ImageBatches:
        """All images of the calibration."""
        return batches_of(self.model, self.images)


def batches_of(model: PreTrainedModel, images: Tensor) -> ImageBatches:
    return ImageBatches(list(images), None, num_images=len(images), batch_size=8, device=model.device)


@pytest.fixture(scope="session")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Reported:
    folder = tmp_path_factory.mktemp("reported")
    planted = planted_model(neurons_per_layer={1: 1, 2: 2})
    images = synthetic_images(40, seed=5)
    config = CalibrationConfig(num_images=40, batch_size=8)
    named = NamedImages(list(images), DataSource(description="<b>synthetic</b> images"))
    result = calibrate(planted.model, named, config=config)
    result.save(folder)
    switch = record_calibrated_switch(planted.model, batches_of(planted.model, images), result, NOTE)
    save_switch(switch, folder)
    write_report(folder)
    return Reported(planted.model, images, result, switch, folder)
