"""Gradients, gradient checkpointing, low precision, inference mode."""

import pytest
import torch
from families import NEURONS, images

from modeling.laws import assert_equal_outputs, down_projection, flat_tensors, forward, patched_model, run
from ttreg_hf import modeling


def _model(case, **options):
    return patched_model(modeling, case, case.stock_model(), **options).train()


def _checkpoint(model, *, use_reentrant):
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": use_reentrant})


def _gradients(model, *, loss_of=lambda model: forward(model, images(), output_hidden_states=True)):
    model.zero_grad()
    tensors = [tensor for _, tensor in flat_tensors(loss_of(model)) if tensor is not None]
    sum(tensor.square().sum() for tensor in tensors).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_gradients_reach_every_parameter_that_they_reach_in_the_stock_model(case):
    model = _model(case)
    assert _gradients(model).keys() == _gradients(case.stock_model().train()).keys()


def test_gradients_reach_the_register_neurons_through_the_register(case):
    """The patches' activation of these neurons is zero, so only the register and the prefix carry it on.

    No block reads the last layer's register, so there the prefix alone carries it: without a prefix, nothing does.
    """
    model = _model(case)
    _gradients(model)
    blocks = case.blocks_of(model)
    for layer, neuron in NEURONS:
        is_read = layer < len(blocks) - 1 or case.family.num_prefix_tokens > 0
        gradient = down_projection(blocks[layer]).weight.grad[:, neuron]
        assert (gradient.abs().sum() > 0) == is_read


def test_gradient_checkpointing_gives_the_same_gradients(case):
    model = _model(case)
    plain = _gradients(model)
    _checkpoint(model, use_reentrant=False)
    assert_equal_outputs(_gradients(model), plain, exact=False)


def test_gradient_checkpointing_that_is_reentrant_gives_the_same_gradients(bare_case):
    model = _model(bare_case)
    last = lambda model: forward(model, images().requires_grad_(True)).last_hidden_state  # noqa: E731
    plain = _gradients(model, loss_of=last)
    _checkpoint(model, use_reentrant=True)
    assert_equal_outputs(_gradients(model, loss_of=last), plain, exact=False)


def test_a_checkpointed_step_within_the_switch_gives_the_stock_models_gradients(bare_case):
    """The backward pass runs the blocks again, so it belongs within the `with` block too."""
    model = _model(bare_case)
    _checkpoint(model, use_reentrant=False)
    with model.disable_test_time_registers():
        found = _gradients(model)
    assert_equal_outputs(found, _gradients(bare_case.stock_model().train()), exact=False)


def test_a_training_step_works_after_inference_mode(case):
    model = _model(case)
    expected = _gradients(_model(case))
    with torch.inference_mode():
        forward(model, images())
    assert_equal_outputs(_gradients(model), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_kept_and_switched_off_is_the_stock_model(case, dtype):
    stock = case.stock_model().to(dtype)
    model = patched_model(modeling, case, stock).to(dtype)
    found = run(model, images().to(dtype))
    assert {tensor.dtype for _, tensor in flat_tensors(found)} == {dtype}
    assert all(torch.isfinite(tensor).all() for _, tensor in flat_tensors(found))
    with model.disable_test_time_registers():
        assert_equal_outputs(run(model, images().to(dtype)), run(stock, images().to(dtype)))


def test_bfloat16_is_near_float32(bare_case):
    found = dict(run(patched_model(modeling, bare_case, bare_case.stock_model()).bfloat16(), images().bfloat16()))
    expected = dict(run(patched_model(modeling, bare_case, bare_case.stock_model()), images()))
    name = "last_hidden_state" if expected.get("pooler_output") is None else "pooler_output"
    similarity = torch.cosine_similarity(found[name].float(), expected[name], dim=-1)
    assert similarity.min() > 0.99


def test_autocast_works(case):
    model = patched_model(modeling, case, case.stock_model())
    with torch.autocast("cpu", torch.bfloat16):
        found = run(model, images())
    shapes = {name: tensor.shape for name, tensor in flat_tensors(run(model, images()))}
    assert {name: tensor.shape for name, tensor in flat_tensors(found)} == shapes
