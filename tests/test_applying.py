"""`add_test_time_registers`: a stock model in, a patched model out, and the stock model as it was."""

import copy
import dataclasses
import inspect
from types import SimpleNamespace

import pytest
import torch
from families import CASES, NEURONS, images
from modeling.laws import assert_equal_outputs, patched_class, patched_model, run

import ttreg_hf.applying
from ttreg_hf import modeling
from ttreg_hf.applying import add_test_time_registers, moving_of, patching_of, published_register_neurons, zeroing_of
from ttreg_hf.register_neuron import RegisterNeuron

DINOV2 = CASES[0]
OTHER_NEURONS = [[2, 1], [0, 3], [0, 9]]


def _hooks(model):
    return {
        name: (len(module._forward_hooks), len(module._forward_pre_hooks)) for name, module in model.named_modules()
    }


def _snapshot(model):
    modules = {name: (id(module), type(module), module.training) for name, module in model.named_modules()}
    parameters = {name: (id(each), each.requires_grad, each.dtype) for name, each in model.named_parameters()}
    return type(model), modules, parameters, _hooks(model), copy.deepcopy(model.config.to_dict())


def test_it_gives_what_a_model_made_from_config_and_weights_gives(case):
    stock = case.stock_model()
    options = {"num_test_time_registers": 2, "shift_value": "per_layer", "shift_fill": "mean", "shift_scale": 0.5}
    found = add_test_time_registers(stock, NEURONS, **options, output_registers=True)
    expected = patched_model(modeling, case, stock, **options, output_registers=True)
    assert type(found) is type(expected) is patched_class(modeling, case)
    assert_equal_outputs(run(found, images()), run(expected, images()))


def test_keys_and_parameters_are_the_stock_models_own(case):
    stock = case.stock_model()
    patched = add_test_time_registers(stock, NEURONS)
    assert list(patched.state_dict()) == list(stock.state_dict())
    ours, theirs = dict(patched.named_parameters()), dict(stock.named_parameters())
    assert list(ours) == list(theirs)
    assert all(ours[name] is theirs[name] for name in theirs)
    assert all(buffer is dict(stock.named_buffers())[name] for name, buffer in patched.named_buffers())


def test_the_given_model_stays_as_it_was(case):
    stock = case.stock_model()
    next(stock.parameters()).requires_grad_(False)
    run(stock, images())
    outputs, before = run(stock, images()), _snapshot(stock)
    patched = add_test_time_registers(stock, NEURONS, output_registers=True)
    run(patched, images())
    patched.train()
    assert _snapshot(stock) == before
    assert_equal_outputs(run(stock, images()), outputs)


def test_a_model_that_has_given_hidden_states_before_can_be_patched(inheriting_case):
    used, fresh = inheriting_case.stock_model(), inheriting_case.stock_model()
    run(used, images())
    found, expected = (run(add_test_time_registers(stock, NEURONS), images()) for stock in (used, fresh))
    assert_equal_outputs(found, expected)


@pytest.mark.parametrize(
    ("dtype", "training", "attention"), [(torch.float32, True, "sdpa"), (torch.bfloat16, False, "eager")]
)
def test_dtype_device_mode_and_attention_are_kept(case, dtype, training, attention):
    stock = case.stock_model(attention=attention).to(dtype).train(training)
    patched = add_test_time_registers(stock, NEURONS)
    assert {parameter.dtype for parameter in patched.parameters()} == {dtype} == {patched.dtype}
    assert {tensor.device.type for tensor in (*patched.parameters(), *patched.buffers())} == {"cpu"}
    assert {module.training for module in patched.modules()} == {training}
    assert patched.config._attn_implementation == ("eager" if attention in case.family.lacks else attention)
    assert run(patched, images().to(dtype))[0] is not None


def test_frozen_parameters_stay_frozen(inheriting_case):
    stock = inheriting_case.stock_model().requires_grad_(False)
    assert not any(parameter.requires_grad for parameter in add_test_time_registers(stock, NEURONS).parameters())


def test_the_config_has_the_base_models_fields_and_says_where_it_comes_from(case):
    stock = case.stock_model()
    stock.config._name_or_path = stock.name_or_path = "org/name"
    patched = add_test_time_registers(stock, NEURONS, base_model_revision="abc")
    ours, base = patched.config.to_dict(), stock.config.to_dict()
    differ = {name for name in base if ours.get(name) != base[name]}
    assert differ <= {"model_type", "architectures"}
    assert patched.config.base_model_name_or_path == "org/name"
    assert patched.config.base_model_revision == "abc"
    assert patched.config.register_neurons == NEURONS
    assert stock.config.model_type == patched.config.model_type.removesuffix("_ttreg")


def test_a_model_may_be_named(tmp_path):
    stock = next(case for case in CASES if case.stock_class.__name__ == "ViTModel").stock_model()
    stock.save_pretrained(tmp_path)
    for named in (tmp_path, str(tmp_path)):
        patched = add_test_time_registers(named, [(1, 2)])
        assert type(patched).__name__ == "ViTTTRegModel"
        assert patched.config.register_neurons == [[1, 2]]
        assert torch.equal(next(patched.parameters()).cpu(), next(stock.parameters()))


def test_register_neurons_may_be_records_pairs_or_an_iterator():
    stock = DINOV2.stock_model()
    records = [RegisterNeuron(layer, neuron, 1.0) for layer, neuron in NEURONS]
    for given in (records, tuple(map(tuple, NEURONS)), iter(NEURONS)):
        assert add_test_time_registers(stock, given).config.register_neurons == NEURONS


@pytest.mark.parametrize(
    ("neurons", "registers"), [(OTHER_NEURONS, 3), (OTHER_NEURONS, 0), ([], 1)], ids=["others", "no registers", "none"]
)
def test_given_a_patched_model_its_neurons_are_replaced_and_it_stays_as_it_was(case, neurons, registers):
    stock = case.stock_model()
    first = add_test_time_registers(stock, NEURONS, num_test_time_registers=2, shift_fill="mean")
    outputs, before = run(first, images()), _snapshot(first)
    second = add_test_time_registers(first, neurons, num_test_time_registers=registers)
    expected = add_test_time_registers(stock, neurons, num_test_time_registers=registers)
    assert_equal_outputs(run(second, images()), run(expected, images()))
    hooks, expected_hooks = _hooks(second), _hooks(expected)
    assert {name: hooks[name] for name, _ in stock.named_modules()} == {
        name: expected_hooks[name] for name, _ in stock.named_modules()
    }
    assert list(second.state_dict()) == list(stock.state_dict())
    assert all(ours is theirs for ours, theirs in zip(second.parameters(), stock.parameters(), strict=True))
    assert _snapshot(first) == before
    assert_equal_outputs(run(first, images()), outputs)


def test_replacing_neurons_keeps_the_mode_and_the_base_models_name(inheriting_case):
    stock = inheriting_case.stock_model()
    stock.config._name_or_path = stock.name_or_path = "org/name"
    second = add_test_time_registers(add_test_time_registers(stock, NEURONS), OTHER_NEURONS)
    assert not any(module.training for module in second.modules())
    assert second.config.base_model_name_or_path == "org/name"


def test_two_patched_models_have_switches_of_their_own(inheriting_case):
    stock = inheriting_case.stock_model()
    first, second = (add_test_time_registers(stock, NEURONS) for _ in range(2))
    before = run(second, images())
    with first.disable_test_time_registers():
        assert_equal_outputs(run(second, images()), before)


def test_a_replaced_model_has_a_switch_of_its_own(inheriting_case):
    first = add_test_time_registers(inheriting_case.stock_model(), NEURONS)
    second = add_test_time_registers(first, OTHER_NEURONS)
    before = run(first, images())
    with second.disable_test_time_registers():
        assert_equal_outputs(run(first, images()), before)


def test_training_the_patched_model_trains_the_stock_model(bare_case):
    stock = bare_case.stock_model()
    patched = add_test_time_registers(stock, NEURONS)
    with torch.no_grad():
        next(patched.parameters()).add_(1.0)
    with patched.disable_test_time_registers():
        assert_equal_outputs(run(patched, images()), run(stock, images()))


@pytest.mark.parametrize("case", CASES[:1], ids=lambda case: case.name)
@pytest.mark.parametrize(
    ("neurons", "message"),
    [
        ([[3, 0]], "names 3/0; this model has 0 neurons there, and layers 0 to 2"),
        ([[0, 64]], "names 0/64; this model has 64 neurons there, and layers 0 to 2"),
    ],
)
def test_neurons_of_another_model_are_refused_and_the_given_model_stays(case, neurons, message):
    stock = case.stock_model()
    before = _snapshot(stock)
    with pytest.raises(ValueError, match=message):
        add_test_time_registers(stock, neurons)
    assert _snapshot(stock) == before


def test_without_neurons_and_without_published_ones_the_error_lists_who_has_some():
    with pytest.raises(ValueError, match=r"No register neurons are published for ''.*facebook/dinov2-large"):
        add_test_time_registers(DINOV2.stock_model())


def test_published_register_neurons_are_known_without_a_score():
    neurons = published_register_neurons("facebook/dinov2-large")
    assert len(neurons) == 45
    assert (neurons[0].layer, neurons[0].neuron) == (17, 884)
    assert all(neuron.score != neuron.score for neuron in neurons)


@pytest.fixture
def published(monkeypatch):
    """A checkpoint `org/name` whose neurons were published with options that are not the defaults."""
    real = ttreg_hf.applying.known_checkpoint("facebook/dinov2-large")
    options = dataclasses.replace(
        real.options, shift_value="per_layer", shift_fill="mean", shift_scale=2.0, num_test_time_registers=2
    )
    known = dataclasses.replace(real, register_neurons=tuple(map(tuple, NEURONS)), options=options)
    monkeypatch.setattr(ttreg_hf.applying, "known_checkpoint", {"org/name": known}.get)
    return SimpleNamespace(name="org/name")


def test_published_neurons_come_with_the_options_they_were_published_with(published):
    stock = DINOV2.stock_model()
    stock.config._name_or_path = stock.name_or_path = published.name
    config = add_test_time_registers(stock).config
    assert config.register_neurons == NEURONS
    assert (config.shift_value, config.shift_fill, config.shift_scale) == ("per_layer", "mean", 2.0)
    assert config.num_test_time_registers == 2


def test_given_options_win_over_published_ones(published):
    stock = DINOV2.stock_model()
    stock.config._name_or_path = stock.name_or_path = published.name
    config = add_test_time_registers(stock, shift_fill="zero", num_test_time_registers=3).config
    assert (config.shift_value, config.shift_fill, config.num_test_time_registers) == ("per_layer", "zero", 3)
    assert add_test_time_registers(stock, OTHER_NEURONS).config.shift_value == "per_neuron"


def test_a_model_can_be_patched_as_another_one_with_every_option(bare_case):
    options = {"num_test_time_registers": 2, "shift_value": "per_layer", "shift_fill": "mean", "shift_scale": 0.5}
    patched = add_test_time_registers(bare_case.stock_model(), NEURONS, **options)
    of_one_model = {"model", "register_neurons", "output_registers", "base_model_revision", "tower"}
    taken = inspect.signature(add_test_time_registers).parameters.keys() - of_one_model
    for found in (patching_of(patched), moving_of(patched), zeroing_of(patched)):
        assert found.keys() == taken
    assert patching_of(patched) == moving_of(patched)
    assert patching_of(patched).items() >= options.items()
    assert zeroing_of(patched) == patching_of(patched) | {"shift_scale": 0.0, "shift_fill": "zero"}
