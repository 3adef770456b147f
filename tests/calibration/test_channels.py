"""Models that read one channel, or four, are measured as those that read three."""

import copy
from collections.abc import Iterable

import pytest
import torch
from brief import BRIEF
from PIL import Image
from torch import Tensor
from transformers import Dinov2Model, PreTrainedModel, ViTImageProcessorPil

from ttreg_hf import add_test_time_registers
from ttreg_hf.calibration.calibration_run import calibrate, inspect_norms
from ttreg_hf.calibration.config import CalibrationConfig
from ttreg_hf.pictures.picture_files import write_before_after
from ttreg_hf.planted import PlantedModel, planted_model, synthetic_images
from ttreg_hf.register_neuron import RegisterNeuron
from ttreg_hf.report.calibration_folder import calibrate_to_folder

COUNT = 12


@pytest.fixture(scope="module")
def grey() -> Tensor:
    """Bytes, `(B, 1, H, W)`."""
    colours = (synthetic_images(COUNT, seed=99) * 0.25 + 0.5).clamp(0, 1)
    return (colours.mean(1, keepdim=True) * 255).round().byte()


@pytest.fixture(scope="module")
def planted(grey) -> PlantedModel:
    return planted_model(images=values(grey).expand(-1, 3, -1, -1))


def values(grey: Tensor) -> Tensor:
    return (grey / 255 - 0.5) / 0.25


def with_channels(model: PreTrainedModel, channels: int) -> PreTrainedModel:
    """The same model, which reads one grey channel, or three and another one that says nothing."""
    config = copy.deepcopy(model.config)
    config.num_channels = channels
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    (name,) = [name for name in weights if name.endswith("projection.weight")]
    filters = weights[name]
    weights[name] = filters.sum(1, keepdim=True) if channels == 1 else torch.cat([filters, 0 * filters[:, :1]], 1)
    changed = Dinov2Model(config).eval()
    changed.load_state_dict(weights)
    return changed


def images(grey: Tensor, channels: int) -> list[Tensor]:
    return list(values(grey).expand(-1, channels, -1, -1))


def config(planted: PlantedModel, **fields: object) -> CalibrationConfig:
    settings = {"norm_threshold": planted.norm_threshold, "last_layer": 3, "top_k": 2}
    return CalibrationConfig(num_images=COUNT, **settings, **fields)


def places(neurons: Iterable[RegisterNeuron]) -> list[tuple[int, int]]:
    return [(neuron.layer, neuron.neuron) for neuron in neurons]


@pytest.mark.parametrize("channels", [1, 4])
def test_the_same_neurons_are_found(planted, grey, channels):
    three = calibrate(planted.model, images(grey, 3), config=config(planted), gate=BRIEF)
    other = calibrate(
        with_channels(planted.model, channels), images(grey, channels), config=config(planted), gate=BRIEF
    )
    assert places(other.register_neurons) == places(three.register_neurons)
    assert sorted(places(three.register_neurons)) == sorted(places(planted.register_neurons))
    torch.testing.assert_close(other.scores, three.scores, rtol=1e-4, atol=1e-4)


def test_grey_pictures_go_through_a_grey_processor_in_every_step(planted, grey, tmp_path):
    """Calibration, its report with photographs, and pictures."""
    model = with_channels(planted.model, 1)
    processor = ViTImageProcessorPil(do_resize=False, image_mean=[0.5], image_std=[0.25])
    pictures = [Image.fromarray(image[0].numpy()) for image in grey]
    found = calibrate_to_folder(
        model, pictures, tmp_path / "found", config=config(planted), processor=processor, gate=BRIEF
    )
    expected = calibrate(model, images(grey, 1), config=config(planted), gate=BRIEF)
    torch.testing.assert_close(found.scores, expected.scores, rtol=1e-4, atol=1e-4)
    assert (tmp_path / "found" / "report.html").is_file()
    patched = add_test_time_registers(model, found.register_neurons)
    (path,) = write_before_after(model, patched, pictures[:1], processor, tmp_path / "pictures", detection_layer=-2)
    assert path.is_file()


def test_float_tensors_of_other_channels_are_refused(planted, grey):
    with pytest.raises(TypeError, match=r"has shape \(1, H, W\), got \(3, 112, 112\)"):
        inspect_norms(with_channels(planted.model, 1), images(grey, 3))
    with pytest.raises(TypeError, match=r"has shape \(3, H, W\), got \(1, 112, 112\)"):
        inspect_norms(planted.model, images(grey, 1))
