"""The warning where images are far from the size that the neurons were found at."""

import logging
from dataclasses import dataclass

import pytest
import torch
from transformers import Dinov2Config, Dinov2Model

from ttreg_hf.applying import add_test_time_registers
from ttreg_hf.measuring import tower
from ttreg_hf.register_neuron import RegisterNeuron

SIZE = (56, 56)


@pytest.fixture
def said(monkeypatch):
    """Warnings, as `warning_once` gives them: repeated ones are its business."""
    lines: list[str] = []
    monkeypatch.setattr(tower._logger, "warning_once", lines.append)
    return lines


@dataclass(frozen=True)
class Found:
    """Neurons found at a size, as a calibration gives them."""

    image_size: tuple[int, int]
    register_neurons: tuple[RegisterNeuron, ...] = (RegisterNeuron(0, 1, 1.0),)
    shift_value: str = "per_neuron"
    constants: None = None
    fixed_positions: tuple = ()

    def check_weights(self, model, tower=None):
        """Of any weights."""


def measure(patched, side):
    """What every verb that measures does first."""
    tower.VisionTower.of(patched).inputs(torch.zeros(1, 3, side, side))


def model(size=None):
    config = Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14)
    return add_test_time_registers(Dinov2Model(config).eval(), Found(size) if size else [(0, 1)])


@torch.no_grad()
@pytest.mark.parametrize(("side", "is_far"), [(56, False), (70, False), (42, False), (84, True), (28, True)])
def test_more_than_twice_or_less_than_half_the_patches_is_far(said, side, is_far):
    measure(model(SIZE), side)
    assert bool(said) is is_far
    assert all("found on images of 16 patches" in line and "`ttreg verify`" in line for line in said)


@torch.no_grad()
def test_nothing_is_said_where_nothing_is_known_or_nothing_is_moved(said):
    measure(model(), 112)
    patched = model(SIZE)
    with patched.disable_test_time_registers():
        measure(patched, 112)
    assert said == []


@torch.no_grad()
def test_two_warnings_are_one_line(caplog):
    tower._logger.warning_once.cache_clear()
    logging.getLogger("transformers").addHandler(caplog.handler)
    logging.getLogger("ttreg_hf").addHandler(caplog.handler)
    try:
        patched = model(SIZE)
        for side in (112, 140, 112):
            measure(patched, side)
    finally:
        logging.getLogger("transformers").removeHandler(caplog.handler)
        logging.getLogger("ttreg_hf").removeHandler(caplog.handler)
    assert len({record.getMessage() for record in caplog.records}) == 1


def test_patches_are_kept_in_the_config():
    assert model((56, 70)).config.to_dict()["calibrated_patches"] == 4 * 5


def test_neurons_of_another_calibration_forget_the_size():
    assert add_test_time_registers(model(SIZE), [(1, 1)]).config.calibrated_patches is None
