"""The module that shifts, in a model: what it leaves alone, and what it keeps from one forward pass to the next."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import ViTConfig, ViTModel

from ttreg_hf import add_test_time_registers
from ttreg_hf.modeling.families import find_mlp
from ttreg_hf.modeling.registers import ShiftedActivation

SIZE = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64, "image_size": 32}
NEURONS = [(1, 3), (1, 8)]


def _stock(**fields):
    torch.manual_seed(0)
    config = ViTConfig(**SIZE, **fields)
    config._attn_implementation = "eager"
    return ViTModel(config, add_pooling_layer=False).eval()


def _images(count=2):
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def _activation(model):
    (found,) = (module for module in model.modules() if isinstance(module, ShiftedActivation))
    return found


def test_an_activation_function_with_weights_is_refused():
    """Their names would change."""
    with pytest.raises(ValueError, match=r"behind an activation function without weights, got PReLU"):
        add_test_time_registers(_stock(hidden_act="prelu"), NEURONS)


def test_a_block_whose_parts_have_other_names_is_shown_and_refused():
    """As a later release of transformers may name them."""
    model = _stock()
    mlp = model.layers[0].mlp
    mlp.nonlinearity = mlp._modules.pop("activation_fn")
    with pytest.raises(
        ValueError, match=r"(?s)A known block has an MLP with one of activation_fn, .*got .*nonlinearity"
    ):
        find_mlp(model.layers[0])


@torch.no_grad()
@pytest.mark.parametrize("hidden_act", ["gelu", "linear"])
def test_what_a_hook_in_front_of_the_shift_saw_is_not_overwritten(hidden_act):
    model, seen = add_test_time_registers(_stock(hidden_act=hidden_act), NEURONS), []
    expected = model(_images()).last_hidden_state
    _activation(model)[0].register_forward_hook(lambda module, args, output: seen.extend([output, output.clone()]))
    assert torch.equal(model(_images()).last_hidden_state, expected)
    assert torch.equal(seen[0], seen[1])


@torch.no_grad()
def test_an_activation_function_that_gives_back_its_input_leaves_it_as_it_was():
    model, seen = add_test_time_registers(_stock(hidden_act="linear"), NEURONS), []
    inner = _activation(model)
    inner.register_forward_pre_hook(lambda module, args: seen.extend([args[0], args[0].clone()]))
    model(_images())
    assert torch.equal(seen[0], seen[1])


def _per_image(model, images):
    state = dict(model.named_parameters())

    def one(image):
        return torch.func.functional_call(model, state, (image[None],)).last_hidden_state[0]

    return one, images


def _by_vmap(model, images):
    one, images = _per_image(model, images)
    return torch.func.vmap(one)(images)


def _by_forward_gradient(model, images):
    one, images = _per_image(model, images)
    return torch.func.jvp(one, (images[0],), (torch.ones_like(images[0]),))


def _by_fake_tensors(model, images):
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        return model(mode.from_tensor(images))


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:There is a performance drop", "ignore:`torch.jit")  # of what torch calls there
@pytest.mark.parametrize("odd", [_by_vmap, _by_forward_gradient, _by_fake_tensors])
def test_an_odd_forward_pass_leaves_nothing_to_the_next_ordinary_one(odd):
    expected = add_test_time_registers(_stock(), NEURONS)(_images()).last_hidden_state
    model = add_test_time_registers(_stock(), NEURONS)
    found = odd(model, _images())
    if odd is _by_vmap:
        torch.testing.assert_close(found, expected)
    assert torch.equal(model(_images()).last_hidden_state, expected)


def test_after_an_odd_forward_pass_it_trains():
    model = add_test_time_registers(_stock(), NEURONS)
    with torch.inference_mode():
        model(_images())
    model(_images()).last_hidden_state.sum().backward()
    assert all(each.grad is not None for each in model.layers.parameters())


@pytest.mark.gpu
@torch.no_grad()
@pytest.mark.parametrize("shift_fill", ["mean", "outliers"])
def test_a_fill_under_autocast_keeps_the_dtype(shift_fill):
    """There a sum is taken in float32."""
    model = add_test_time_registers(_stock(), NEURONS, shift_fill=shift_fill).cuda()
    mask = torch.ones(2, 1, 5, 5, dtype=torch.bool, device="cuda")
    mask[..., -1] = False
    plain = model(_images().cuda(), attention_mask=mask).last_hidden_state
    with torch.autocast("cuda", torch.bfloat16):
        found = model(_images().cuda(), attention_mask=mask).last_hidden_state
    torch.testing.assert_close(found.float(), plain, rtol=0.1, atol=0.1)
