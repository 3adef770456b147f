"""The laws hold in every family; those of its outputs with every head."""

import pytest
from families import CASES, LAW_CASES, PIXIO_BACKBONE

from modeling import laws
from ttreg_hf import modeling

# what the outputs of a head depend on; the others are about the trunk, which one of each kind of head stands for
LAWS_OF_OUTPUTS = [
    laws.law_outputs_are_those_of_the_method_by_hand,
    laws.law_output_shapes_are_the_stock_models,
    laws.law_switched_off_it_is_the_stock_model_bit_for_bit,
    laws.law_what_padding_holds_does_not_matter,
]
LAWS_OF_TRUNKS = [
    law for law in laws.LAWS if law not in (*LAWS_OF_OUTPUTS, laws.law_a_register_is_outside_its_own_maximum)
]


@pytest.mark.parametrize("law", LAWS_OF_TRUNKS, ids=lambda law: law.__name__.removeprefix("law_"))
@pytest.mark.parametrize("case", LAW_CASES, ids=lambda case: case.name)
def test_law_of_trunks_holds(law, case):
    law(modeling, case)


@pytest.mark.parametrize("law", LAWS_OF_OUTPUTS, ids=lambda law: law.__name__.removeprefix("law_"))
def test_law_of_outputs_holds(law, every_case):
    law(modeling, every_case)


def test_law_of_the_maximum_holds():
    laws.law_a_register_is_outside_its_own_maximum(modeling)


@pytest.mark.parametrize("law", laws.LAWS, ids=lambda law: law.__name__.removeprefix("law_"))
def test_law_holds_for_a_backbone_around_its_trunk(law):
    law(modeling, PIXIO_BACKBONE)


@pytest.mark.parametrize("shift_fill", ["zero", "mean", "outliers", "keep"])
@pytest.mark.parametrize("shift_value", ["per_neuron", "per_layer"])
def test_every_option_gives_what_the_method_gives_by_hand(bare_case, shift_value, shift_fill):
    laws.law_outputs_are_those_of_the_method_by_hand(
        modeling,
        bare_case,
        num_test_time_registers=2,
        shift_value=shift_value,
        shift_fill=shift_fill,
        shift_scale=2.0,
    )


def test_zeroing_without_moving_gives_what_the_method_gives_by_hand(every_bare_case):
    laws.law_outputs_are_those_of_the_method_by_hand(modeling, every_bare_case, shift_scale=0.0)


@pytest.mark.parametrize("case", [case for case in CASES if "sdpa" in case.family.lacks], ids=lambda case: case.name)
def test_what_the_matrix_says_a_family_lacks_it_lacks(case):
    with pytest.raises(ValueError, match=r"does not support an attention implementation through torch\.nn"):
        case.stock_class._from_config(case.config_class(**case.fields()), attn_implementation="sdpa")
