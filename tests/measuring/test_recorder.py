"""The recorder sees what the blocks see: raw outputs, the down projection's inputs, registers included."""

import pytest
import torch
from families import CASES, NEURONS, Case, images
from modeling.laws import down_projection, reading
from torch import nn

from ttreg_hf.applying import add_test_time_registers
from ttreg_hf.measuring.recorder import Recorder, Recording
from ttreg_hf.measuring.tower import VisionTower
from ttreg_hf.planted import planted_model

from .features import head_feature


def _record(model: torch.nn.Module, *, layers: tuple[int, ...] = (), count: int = 3) -> Recording:
    with Recorder(VisionTower.of(model), layers) as recorder:
        return recorder(images(count))


def _num_hooks(model: torch.nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@torch.no_grad()
def test_norms_are_those_of_hidden_states(bare_case):
    """`hidden_states[i + 1]` is block i's raw output."""
    model = bare_case.stock_model()
    states = model(**VisionTower.of(model).inputs(images()), output_hidden_states=True).hidden_states[1:]
    expected = torch.stack([state.norm(dim=-1) for state in states])
    torch.testing.assert_close(_record(model).norms_LBT, expected, rtol=1e-6, atol=0)


@torch.no_grad()
def test_norms_are_of_the_raw_output_not_the_normed(bare_case):
    """A last LayerNorm with weight 100 multiplies what it normalises; raw norms stay as they are."""
    model = bare_case.stock_model()
    before = _record(model).norms_LBT
    for name in ("layernorm", "post_layernorm", "norm", "rms_norm"):
        if isinstance(last_norm := getattr(model, name, None), nn.Module):
            for parameter in last_norm.parameters():  # none where the mean is pooled (InternVL)
                parameter.fill_(100.0)
    assert torch.equal(_record(model).norms_LBT, before)


@torch.no_grad()
def test_acts_are_the_inputs_of_the_down_projection(bare_case):
    """The layer's down projection makes of them what it wrote in the recorded pass."""
    model = bare_case.stock_model()
    blocks = bare_case.blocks_of(model)
    written: dict[int, torch.Tensor] = {}
    for layer in (0, 2):
        down_projection(blocks[layer]).register_forward_hook(
            lambda module, args, output, layer=layer: written.__setitem__(layer, output)
        )
    acts = _record(model, layers=(0, 2)).acts_by_layer
    assert sorted(acts) == [0, 2]
    for layer, acts_BTF in acts.items():
        projection = down_projection(blocks[layer])
        assert acts_BTF.shape == (3, bare_case.family.num_prefix_tokens + 16, projection.in_features)
        torch.testing.assert_close(projection(acts_BTF), written[layer], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_acts_of_a_patched_model_are_after_the_shift(bare_case):
    """What the down projection reads: zero on the patches, the moved value on the register."""
    patched = add_test_time_registers(bare_case.stock_model(), NEURONS)
    acts = _record(patched, layers=(1,)).acts_by_layer[1]
    layout = VisionTower.of(patched).layout
    assert (acts[:, layout.patches][..., [5, 0, 2]] == 0).all()
    assert (acts[:, layout.registers][..., [5, 0, 2]] != 0).all()


@torch.no_grad()
def test_a_patched_model_is_recorded_with_its_registers_at_every_block(every_case: Case):
    patched = add_test_time_registers(every_case.stock_model(), NEURONS, num_test_time_registers=3)
    recording = _record(patched, layers=(0, 1, 2))
    tokens = every_case.family.num_prefix_tokens + 16 + 3
    assert recording.norms_LBT.shape == (3, 3, tokens)
    assert {acts.shape[1] for acts in recording.acts_by_layer.values()} == {tokens}


@torch.no_grad()
def test_norms_of_a_patched_model_are_those_of_its_hidden_states(bare_case):
    patched = add_test_time_registers(bare_case.stock_model(), NEURONS, output_registers=True)
    states = patched(**VisionTower.of(patched).inputs(images()), output_hidden_states=True).hidden_states[1:]
    expected = torch.stack([state.norm(dim=-1) for state in states])
    torch.testing.assert_close(_record(patched).norms_LBT, expected, rtol=1e-6, atol=0)


@torch.no_grad()
def test_feature_is_what_heads_read(bare_case):
    model = bare_case.stock_model()
    outputs = model(**VisionTower.of(model).inputs(images()))
    assert torch.equal(_record(model).feature_BD, head_feature(bare_case, outputs))


@torch.no_grad()
@pytest.mark.parametrize("output_registers", [False, True])
@pytest.mark.parametrize("name", ["ViT", "DeiT"])
def test_feature_of_a_trunk_without_pooling_is_what_its_classifier_reads(name, output_registers):
    """CLS, and not the mean over all tokens, registers among them."""
    case = next(case for case in CASES if case.stock_class.__name__ == f"{name}ForImageClassification")
    model = add_test_time_registers(case.stock_model(), NEURONS, output_registers=output_registers)
    with reading(model.classifier) as read:
        model(**VisionTower.of(model).inputs(images()))
    torch.testing.assert_close(_record(model).feature_BD, read[0])


@torch.no_grad()
def test_feature_of_a_bare_model_without_pooling_leaves_out_the_registers_that_it_gives_out():
    stock = next(case for case in CASES if case.stock_class.__name__ == "SiglipVisionModel").stock_model(
        vision_use_head=False
    )
    patched = add_test_time_registers(stock, NEURONS, output_registers=True)
    tokens = patched(images()).last_hidden_state
    assert tokens.shape[1] == 17
    torch.testing.assert_close(_record(patched).feature_BD, tokens[:, 1:].mean(1))


@torch.no_grad()
def test_feature_of_a_backbone_is_the_mean_patch_of_its_last_map():
    case = next(case for case in CASES if case.is_backbone)
    model = case.stock_model()
    expected = model(images()).feature_maps[-1].mean((2, 3))
    torch.testing.assert_close(_record(model).feature_BD, expected)


def test_bf16_gives_float32_norms_and_features(bare_case):
    recording = _record(bare_case.stock_model().bfloat16(), layers=(0,))
    assert recording.norms_LBT.dtype == recording.feature_BD.dtype == torch.float32
    assert recording.acts_by_layer[0].dtype == torch.bfloat16


def test_recordings_do_not_share_what_an_earlier_batch_left(bare_case):
    model = bare_case.stock_model()
    with Recorder(VisionTower.of(model), (1,)) as recorder:
        first = recorder(images(3, seed=1))
        second = recorder(images(2, seed=2))
        again = recorder(images(3, seed=1))
    assert second.norms_LBT.shape[1] == second.acts_by_layer[1].shape[0] == 2
    assert torch.equal(first.norms_LBT, again.norms_LBT)
    assert torch.equal(first.acts_by_layer[1], again.acts_by_layer[1])


@torch.no_grad()
def test_embedding_norms_are_those_that_the_first_block_reads(bare_case):
    model = bare_case.stock_model()
    states = model(**VisionTower.of(model).inputs(images()), output_hidden_states=True).hidden_states
    torch.testing.assert_close(_record(model, layers=()).embedding_norms_BT, states[0].norm(dim=-1))


def test_recording_needs_no_gradients(bare_case):
    recording = _record(bare_case.stock_model(), layers=(0,))
    assert not recording.norms_LBT.requires_grad
    assert not recording.acts_by_layer[0].requires_grad


@pytest.mark.parametrize("is_patched", [False, True], ids=["stock", "patched"])
def test_hooks_are_gone_afterwards(bare_case, is_patched):
    model = bare_case.stock_model()
    model = add_test_time_registers(model, NEURONS) if is_patched else model
    before = _num_hooks(model)
    with Recorder(VisionTower.of(model), (0, 1)):
        assert _num_hooks(model) == before + len(bare_case.blocks_of(model)) + 2 + 1  # blocks, layers, embeddings
    assert _num_hooks(model) == before


def test_hooks_are_gone_after_an_error(bare_case):
    model = bare_case.stock_model()
    before = _num_hooks(model)
    with (
        pytest.raises((RuntimeError, ValueError), match=r"channel|shape|mat1|size"),
        Recorder(VisionTower.of(model), (0,)) as recorder,
    ):
        recorder(torch.zeros(1, 5, 16, 16))
    assert _num_hooks(model) == before


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("layers", {"layers": (0, 99)}),
        ("norm_layers", {"norm_layers": (0, 99)}),
        ("attention_layers", {"attention_layers": (0, 99)}),
        ("layer", {"states": [("key", 0), ("key", 99)]}),
    ],
)
def test_hooks_are_gone_after_a_layer_that_does_not_exist(name, given):
    model = CASES[0].stock_model()
    before = _num_hooks(model)
    with (
        pytest.raises(ValueError, match=rf"`{name}` is a layer from -3 to 2"),
        Recorder(VisionTower.of(model), **given),
    ):
        pass
    assert _num_hooks(model) == before


@pytest.mark.parametrize("family", ["dinov2", "siglip_vision_model"])
def test_the_row_of_constant_mode_is_in_nothing_that_is_recorded(family):
    planted = planted_model(family)
    width = planted.model.config.hidden_size
    rows = torch.randn(2, width, generator=torch.Generator().manual_seed(1))
    patched = add_test_time_registers(
        planted.model, planted.register_neurons, test_time_register_mode="constant", constants=rows
    )
    patched.set_attn_implementation("eager")
    tower, states = VisionTower.of(patched), []
    layer = tower.num_layers - 1
    handle = tower.attention(layer).register_forward_pre_hook(
        lambda module, args, kwargs: states.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    wanted = [(state, layer) for state in ("key", "query", "value", "out")]
    with Recorder(tower, states=wanted, attention_layers=[0, layer]) as recorder:
        found = recorder(planted.sample[:2])
    handle.remove()
    count = tower.base_layout.num_prefix_tokens + found.grid[0] * found.grid[1]
    assert states[0].shape[1] == count + 1
    assert torch.equal(states[0][:, 0], rows[-1].expand(2, -1))
    for state in wanted:
        assert found.states[state].shape[1] == count
    module, part = tower.projection(layer, "key")
    with torch.no_grad():
        torch.testing.assert_close(found.states["key", layer], module(states[0][:, 1:])[..., part])
    sums = {layer: found.attentions[layer].sum(-1) for layer in (0, layer)}
    assert found.attentions[layer].shape[1:] == (count, count)
    assert torch.allclose(sums[0], torch.ones_like(sums[0]))
    assert (sums[layer] < 1).all()  # what is left of a row when the constant's share is cut
