"""The checksum that a calibration is bound to its weights by: equal where the forward pass is, and only there."""

import copy

import pytest
import torch
from families import BARE_CASES, NEURONS, Case
from outer_models import OUTER_MODELS

from ttreg_hf.applying import add_test_time_registers
from ttreg_hf.known.support import stock_model_class
from ttreg_hf.measuring.tower import VisionTower
from ttreg_hf.measuring.trunk_weights import has_checksum, tensors_read, weights_checksums
from ttreg_hf.modeling.families import blocks_of_trunk

DINOV2 = BARE_CASES[0]


def _tower(model: torch.nn.Module) -> VisionTower:
    return VisionTower.to_measure(model, registers=False)


def test_a_head_changes_nothing(every_case: Case):
    """Of the trunk that a bare model has; a pooling head of its own does not count."""
    bare = next(case for case in BARE_CASES if case.family is every_case.family).stock_model()
    model = every_case.stock_model()
    every_case.trunk_of(model).load_state_dict(_tower(bare).trunk.state_dict(), strict=False)
    assert weights_checksums(_tower(model)) == weights_checksums(_tower(bare))


@pytest.mark.parametrize("name", ["llava", "paligemma", "zoedepth"])
def test_a_model_around_the_tower_changes_nothing(name):
    around = OUTER_MODELS[name]
    model = around.stock()
    tower = VisionTower.to_measure(model, name=around.tower)
    bare = stock_model_class(tower.trunk.config.model_type)(tower.trunk.config).eval()
    _tower(bare).trunk.load_state_dict(tower.trunk.state_dict(), strict=False)
    assert has_checksum(tower, weights_checksums(_tower(bare)))
    assert has_checksum(_tower(bare), weights_checksums(tower))


def test_a_patched_model_has_its_base_models(every_bare_case: Case):
    model = every_bare_case.stock_model()
    patched = add_test_time_registers(model, NEURONS, num_test_time_registers=2, output_registers=True)
    assert weights_checksums(_tower(patched)) == weights_checksums(_tower(model))


def test_two_exchanged_blocks_are_other_weights(every_bare_case: Case):
    model = every_bare_case.stock_model()
    other = copy.deepcopy(model)
    blocks = blocks_of_trunk(_tower(other).trunk)
    first, second = (copy.deepcopy(blocks[layer].state_dict()) for layer in (0, 1))
    inner = blocks_of_trunk(VisionTower.of(other).trunk)
    inner[0].load_state_dict(second)
    inner[1].load_state_dict(first)
    assert not has_checksum(_tower(other), weights_checksums(_tower(model)))


def test_each_tensor_that_is_read_counts_and_no_other(every_bare_case: Case):
    model = every_bare_case.stock_model(num_hidden_layers=1)
    checksums, tower = weights_checksums(_tower(model)), VisionTower.of(model)
    read = tensors_read(tower)
    for name, tensor in tower.trunk.state_dict(keep_vars=True).items():
        if not tensor.is_floating_point():
            continue
        kept = tensor.detach().clone()
        tensor.data += 1.0
        assert has_checksum(_tower(model), checksums) is (name not in read), name
        tensor.data.copy_(kept)
    assert has_checksum(_tower(model), checksums)


def test_a_mask_token_and_a_pooler_are_not_read():
    assert "embeddings.mask_token" not in tensors_read(VisionTower.of(DINOV2.stock_model()))
    vit = next(case for case in BARE_CASES if case.family.name == "vit")
    read = tensors_read(VisionTower.of(vit.stock_model()))
    assert not any(name.startswith("pooler") for name in read)
    assert "embeddings.cls_token" in read


@pytest.mark.parametrize("measured", [torch.float32, torch.bfloat16, torch.float16])
def test_the_number_format_may_be_another_one(measured):
    """Measured in half precision and loaded whole, or the other way round."""
    whole = DINOV2.stock_model()
    checksums = weights_checksums(_tower(copy.deepcopy(whole).to(measured)))
    assert next(iter(checksums)) == str(measured).removeprefix("torch.")
    assert has_checksum(_tower(whole), checksums)
    if measured == torch.float32:
        for dtype in (torch.bfloat16, torch.float16):
            assert has_checksum(_tower(copy.deepcopy(whole).to(dtype)), checksums)
    with torch.no_grad():
        whole.encoder.layer[1].mlp.fc1.weight[0, 0] += 1.0
    assert not has_checksum(_tower(whole), checksums)


def test_offloaded_weights_cannot_be_compared():
    model = DINOV2.stock_model()
    model.encoder.layer[0].mlp.fc1.weight = torch.nn.Parameter(torch.empty(32, 16, device="meta"))
    with pytest.raises(ValueError, match="compared with weights in memory, but some of this model are offloaded"):
        tensors_read(VisionTower.of(model))
