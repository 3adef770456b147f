"""The laws hold in every family and every head."""

import pytest

from modeling import laws
from ttreg_hf import modeling


@pytest.mark.parametrize("law", laws.LAWS, ids=lambda law: law.__name__.removeprefix("law_"))
def test_law_holds(law, case):
    law(modeling, case)


@pytest.mark.parametrize("shift_fill", ["zero", "mean", "outliers", "keep"])
@pytest.mark.parametrize("shift_value", ["per_neuron", "per_layer"])
def test_every_option_gives_what_the_method_gives_by_hand(bare_case, shift_value, shift_fill):
    laws.law_outputs_are_those_of_the_method_by_hand(
        modeling, bare_case, num_test_time_registers=2, shift_value=shift_value, shift_fill=shift_fill, shift_scale=2.0
    )


def test_zeroing_without_moving_gives_what_the_method_gives_by_hand(bare_case):
    laws.law_outputs_are_those_of_the_method_by_hand(modeling, bare_case, shift_scale=0.0)
