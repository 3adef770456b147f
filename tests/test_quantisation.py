"""torchao's int8 weights: a patched model takes them as its base model does, and the shift still acts."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torchao.quantization import Int8WeightOnlyConfig, quantize_

from ttreg_hf import add_test_time_registers
from ttreg_hf.measuring.tower import VisionTower
from ttreg_hf.planted import planted_model

# a plain MLP, a gated one, and another tower
FAMILIES = {
    "dinov2": ("dinov2", {}),
    "dinov2-swiglu": ("dinov2", {"use_swiglu_ffn": True}),
    "clip": ("clip_vision_model", {}),
}


def _quantised(model):
    twin = copy.deepcopy(model)
    quantize_(twin, Int8WeightOnlyConfig())
    return twin


@torch.no_grad()
def _states(model, pixel_values):
    """Output of every block."""
    return torch.stack(model(pixel_values, output_hidden_states=True).hidden_states[1:])


def _cost(found, exact):
    return float((found - exact).norm() / exact.norm())


@pytest.fixture(scope="module", params=FAMILIES)
def models(request):
    """A planted model and its patched twin, each as it is and with int8 weights, and the truth about them."""
    family, fields = FAMILIES[request.param]
    known = planted_model(family, **fields)
    base, patched = known.model, add_test_time_registers(known.model, known.register_neurons)
    return SimpleNamespace(
        known=known, base=base, patched=patched, int8_base=_quantised(base), int8_patched=_quantised(patched)
    )


def test_the_same_weights_of_a_patched_model_are_quantised(models):
    ours, theirs = (
        {
            (layer, name): module.weight.qdata
            for layer, block in enumerate(VisionTower.of(model).blocks)
            for name, module in block.named_modules()
            if isinstance(module, nn.Linear)
        }
        for model in (models.int8_patched, models.int8_base)
    )
    assert ours.keys() == theirs.keys()
    assert {weight.dtype for weight in ours.values()} == {torch.int8}
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_patching_before_or_after_quantising_gives_the_same(models):
    after = add_test_time_registers(models.int8_base, models.known.register_neurons)
    expected = _states(models.int8_patched, models.known.sample)
    assert torch.equal(_states(after, models.known.sample), expected)


def test_switched_off_a_quantised_model_is_the_quantised_base_model_bit_for_bit(models):
    with models.int8_patched.disable_test_time_registers() as off:
        found = _states(off, models.known.sample)
    assert torch.equal(found, _states(models.int8_base, models.known.sample))


def test_quantising_costs_a_patched_model_no_more_than_its_base_model(models):
    """And less than the shift does: the outputs are the patched model's."""
    base, patched, int8_base, int8_patched = (
        _states(model, models.known.sample)
        for model in (models.base, models.patched, models.int8_base, models.int8_patched)
    )
    assert 0 < _cost(int8_patched, patched) <= _cost(int8_base, base)
    assert _cost(int8_patched, patched) < _cost(patched, base)


def test_outliers_leave_the_patches_of_a_quantised_model(models):
    patches = VisionTower.of(models.base).layout.patches
    before, after = (
        _states(model, models.known.sample)[-1][:, patches].norm(dim=-1)
        for model in (models.int8_base, models.int8_patched)
    )
    assert before.max() > 2 * models.known.norm_threshold
    assert after.max() < models.known.norm_threshold
