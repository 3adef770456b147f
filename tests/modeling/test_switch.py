"""`disable_test_time_registers()`."""

import copy
import pickle
import threading

import pytest
import torch
from families import BARE_CASES, images

from modeling.laws import assert_equal_outputs, forward, patched_model, run
from ttreg_hf import modeling


@pytest.fixture
def stock(inheriting_case):
    return inheriting_case.stock_model()


@pytest.fixture
def model(inheriting_case, stock):
    return patched_model(modeling, inheriting_case, stock)


def test_within_it_the_model_is_the_stock_model_and_after_it_patched_again(model, stock):
    before = run(model, images())
    with model.disable_test_time_registers() as given:
        assert given is model
        assert_equal_outputs(run(model, images()), run(stock, images()))
    assert_equal_outputs(run(model, images()), before)


def test_it_nests(model, stock):
    with model.disable_test_time_registers():
        with model.disable_test_time_registers():
            pass
        assert_equal_outputs(run(model, images()), run(stock, images()))


def test_it_is_restored_on_error(model):
    before = run(model, images())
    with pytest.raises(KeyError), model.disable_test_time_registers():
        raise KeyError
    assert_equal_outputs(run(model, images()), before)


def test_it_wins_over_output_registers(inheriting_case, stock):
    model = patched_model(modeling, inheriting_case, stock, output_registers=True)
    with model.disable_test_time_registers():
        assert_equal_outputs(run(model, images()), run(stock, images()))


def test_it_is_not_saved(model, tmp_path):
    before = model.config.to_dict()
    with model.disable_test_time_registers():
        assert model.config.to_dict() == before
        model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, attn_implementation="eager")
    assert_equal_outputs(run(loaded, images()), run(model, images()))


def test_it_switches_one_model_only(inheriting_case, stock, model):
    other = patched_model(modeling, inheriting_case, stock)
    before = run(other, images())
    with model.disable_test_time_registers():
        assert_equal_outputs(run(other, images()), before)


def _in_a_thread(function):
    """What a function returns in a thread of its own, or the error it raised there."""
    found = []

    def call():
        try:
            found.append(function())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    return found[0]


def test_it_holds_in_its_own_thread_only(model, stock):
    patched, base = run(model, images()), run(stock, images())
    with model.disable_test_time_registers():
        assert_equal_outputs(_in_a_thread(lambda: run(model, images())), patched)
        assert_equal_outputs(run(model, images()), base)


def test_two_that_overlap_leave_the_model_on(model):
    """The one that began first ends first."""
    before = run(model, images())
    first_is_off, second_is_off = threading.Event(), threading.Event()

    def second():
        first_is_off.wait()
        with model.disable_test_time_registers():
            second_is_off.set()
            first_is_done.wait()

    first_is_done, other = threading.Event(), threading.Thread(target=second)
    other.start()
    with model.disable_test_time_registers():
        first_is_off.set()
        second_is_off.wait()
    first_is_done.set()
    other.join()
    assert_equal_outputs(run(model, images()), before)
    assert_equal_outputs(_in_a_thread(lambda: run(model, images())), before)
    assert model.registers.off_in == []


@pytest.mark.parametrize("make", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_made_within_it_is_on(model, make):
    with model.disable_test_time_registers():
        try:
            other = make(model)
        except AttributeError:  # transformers' backbones hold hooks that are closures
            other = copy.deepcopy(model)
        within = run(other, images())
    expected = run(model, images())
    assert_equal_outputs(within, expected)
    assert_equal_outputs(run(other, images()), expected)
    assert other.registers.off_in == []


def test_a_compiled_model_is_switched_in_its_own_thread_only():
    case = BARE_CASES[0]
    stock = case.stock_model()
    model = patched_model(modeling, case, stock)
    patched, base = run(model, images()), run(stock, images())
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for _ in range(2):
        assert_equal_outputs(run(compiled, images()), patched, exact=False)
        with model.disable_test_time_registers():
            assert_equal_outputs(run(compiled, images()), base, exact=False)
            assert_equal_outputs(_in_a_thread(lambda: run(compiled, images())), patched, exact=False)
    torch.compiler.reset()


def test_a_block_that_another_thread_runs_again_for_its_gradients_is_refused_within_it(inheriting_case, stock):
    """Autograd does so on CUDA, where gradient checkpointing is on."""
    model = patched_model(modeling, inheriting_case, stock).train()
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    gradients = lambda: _in_a_thread(_sum_of_states(model).backward)  # noqa: E731
    assert gradients() is None
    with model.disable_test_time_registers():
        error = gradients()
        assert isinstance(error, RuntimeError)
        assert "holds in its own thread" in str(error)
        assert "`config.num_test_time_registers = 0`" in str(error)
        _sum_of_states(model).backward()  # in this thread


def _sum_of_states(model):
    output = forward(model, images().requires_grad_(True), output_hidden_states=True)
    output = output.get("vision_model_output", output)
    return output.hidden_states[-1].square().sum()


def test_data_parallel_is_refused_within_it(model):
    """It runs replicas of the model, which share what the hooks share, in threads of its own."""
    before = run(model, images())
    model.get_submodule(model.trunk_name)._is_replica = True  # as it marks them
    assert_equal_outputs(_in_a_thread(lambda: run(model, images())), before)
    with model.disable_test_time_registers():
        error = _in_a_thread(lambda: run(model, images()))
    assert isinstance(error, RuntimeError)
    assert "`DataParallel`" in str(error)
