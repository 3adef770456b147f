"""`disable_test_time_registers()`."""

import pytest
from families import images

from modeling.laws import assert_equal_outputs, patched_model, run
from ttreg_hf import modeling


@pytest.fixture
def stock(case):
    return case.stock_model()


@pytest.fixture
def model(case, stock):
    return patched_model(modeling, case, stock)


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


def test_it_wins_over_output_registers(case, stock):
    model = patched_model(modeling, case, stock, output_registers=True)
    with model.disable_test_time_registers():
        assert_equal_outputs(run(model, images()), run(stock, images()))


def test_it_is_not_saved(model, tmp_path):
    before = model.config.to_dict()
    with model.disable_test_time_registers():
        assert model.config.to_dict() == before
        model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, attn_implementation="eager")
    assert_equal_outputs(run(loaded, images()), run(model, images()))


def test_it_switches_one_model_only(case, stock, model):
    other = patched_model(modeling, case, stock)
    before = run(other, images())
    with model.disable_test_time_registers():
        assert_equal_outputs(run(other, images()), before)
