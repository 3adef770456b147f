"""The shift, worked out by hand on small tensors and by the book on random ones."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling.laws import expected_shift
from ttreg_hf.modeling.registers import (
    SHIFT_FILLS,
    SHIFT_VALUES,
    TokenLayout,
    shift_neurons,
    signed_max,
)

# one image: CLS, one register, four patches; two neurons
ACTS = torch.tensor([[[2.0, -1.0], [50.0, 7.0], [1.0, 3.0], [3.0, -4.0], [-8.0, 1.0], [2.0, 4.0]]])
LAYOUT = TokenLayout(num_prefix_tokens=1, num_test_time_registers=1, patch_size=(4, 4))
# quarters of small whole numbers: ties and exact sums are common
QUARTERS = st.integers(-12, 12).map(lambda value: value / 4)


def _shift(acts, *, neurons=(0,), layout=LAYOUT, value="per_neuron", fill="zero", scale=1.0, in_place=False):
    settings = {"shift_value": value, "shift_fill": fill, "shift_scale": scale}
    return shift_neurons(acts, torch.tensor(neurons), layout, settings, None, in_place=in_place)


@st.composite
def activations(draw, max_images=3, max_tokens=8, max_neurons=5):
    shape = [draw(st.integers(1, most)) for most in (max_images, max_tokens, max_neurons)]
    size = shape[0] * shape[1] * shape[2]
    return torch.tensor(draw(st.lists(QUARTERS, min_size=size, max_size=size))).reshape(shape)


def test_signed_max_keeps_the_sign_of_the_largest_magnitude():
    assert signed_max(torch.tensor([[[1.0, 0.0], [-3.0, 0.0], [2.0, 5.0]]])).tolist() == [[-3.0, 5.0]]


def test_signed_max_of_equal_magnitudes_is_the_first():
    assert signed_max(torch.tensor([[[-3.0, 3.0], [3.0, -3.0]]])).tolist() == [[-3.0, 3.0]]


@settings(deadline=None, max_examples=50)
@given(activations())
def test_signed_max_of_the_negative_is_the_negative(acts):
    assert torch.equal(signed_max(-acts), -signed_max(acts))


@settings(deadline=None, max_examples=50)
@given(activations())
def test_signed_max_is_a_value_that_occurs_with_the_largest_magnitude(acts):
    found = signed_max(acts)
    assert torch.equal(found.abs(), acts.abs().amax(dim=1))
    assert (acts == found.unsqueeze(1)).any(dim=1).all()


def test_per_neuron_moves_each_neurons_own_value_and_ignores_the_register():
    shifted = _shift(ACTS, neurons=(0, 1))
    assert shifted[0].tolist() == [[2, -1], [-8, -4], [0, 0], [0, 0], [0, 0], [0, 0]]


def test_per_layer_moves_one_value_for_all_and_counts_the_register():
    shifted = _shift(ACTS, neurons=(0, 1), value="per_layer")
    assert shifted[0].tolist() == [[2, -1], [50, 50], [0, 0], [0, 0], [0, 0], [0, 0]]


def test_a_prefix_token_counts_in_the_maximum():
    acts = ACTS.clone()
    acts[0, 0, 0] = -9.0
    assert _shift(acts)[0, 1, 0] == -9.0


def test_fill_mean_puts_the_mean_of_the_patches_on_every_patch():
    assert _shift(ACTS, fill="mean")[0, :, 0].tolist() == [2, -8, -0.5, -0.5, -0.5, -0.5]


def test_fill_keep_leaves_the_patches():
    assert _shift(ACTS, fill="keep")[0, :, 0].tolist() == [2, -8, 1, 3, -8, 2]


def test_fill_outliers_sets_only_patches_above_one_population_deviation_to_the_mean():
    # mean 2; population standard deviation 2: the 6 is above 4, the 4 is not (it would be for no estimate of it)
    patches = torch.tensor([0.0, 6.0, 1.0, 1.0])
    assert (patches.mean(), patches.std(correction=0)) == (2.0, pytest.approx(2.345, abs=1e-3))
    acts = torch.cat([torch.tensor([1.0, 0.0]), patches]).reshape(1, 6, 1)
    assert _shift(acts, fill="outliers")[0, :, 0].tolist() == [1, 6, 0, 2, 1, 1]


def test_fill_outliers_uses_the_population_deviation():
    # 0 0 0 4: mean 1, population deviation 1.73, sample deviation 2; so 4 is out. 2.9 of 0 0 0 2.9 likewise by both,
    # 1 -1 1.3 -1.3: deviation 1.16 and 1.34; 1.3 is above the first only
    acts = torch.tensor([0.0, 0.0, 1.0, -1.0, 1.3, -1.3]).reshape(1, 6, 1)
    assert _shift(acts, fill="outliers")[0, 2:, 0].tolist() == pytest.approx([1.0, -1.0, 0.0, -1.3])


def test_fill_outliers_leaves_patches_far_below_the_mean():
    acts = torch.tensor([0.0, 0.0, -9.0, 1.0, 1.0, 1.0]).reshape(1, 6, 1)
    assert torch.equal(_shift(acts, fill="outliers")[0, 2:, 0], acts[0, 2:, 0])


def test_scale_multiplies_what_the_register_gets_and_nothing_else():
    once, twice, never = (_shift(ACTS, scale=scale) for scale in (1.0, 2.0, 0.0))
    assert (once[0, 1, 0], twice[0, 1, 0], never[0, 1, 0]) == (-8.0, -16.0, 0.0)
    once[:, 1, 0] = twice[:, 1, 0] = never[:, 1, 0] = 0.0
    assert torch.equal(once, twice)
    assert torch.equal(once, never)


def test_two_registers_get_the_same_value_each():
    acts = torch.cat([ACTS[:, :1], torch.full((1, 2, 2), 60.0), ACTS[:, 2:]], dim=1)
    shifted = _shift(acts, neurons=(1,), layout=TokenLayout(1, 2, (4, 4)))
    assert shifted[0, :, 1].tolist() == [-1, -4, -4, 0, 0, 0, 0]


def test_without_prefix_tokens_the_registers_are_first():
    shifted = _shift(ACTS[:, 1:], layout=TokenLayout(0, 1, (4, 4)))
    assert shifted[0, :, 0].tolist() == [-8, 0, 0, 0, 0]


def test_the_input_is_changed_only_where_that_is_asked_for():
    before = ACTS.clone()
    shifted = _shift(ACTS, neurons=(0, 1))
    assert torch.equal(ACTS, before)
    assert _shift(before, neurons=(0, 1), in_place=True) is before
    assert torch.equal(before, shifted)


@settings(deadline=None, max_examples=80)
@given(st.data(), activations(max_tokens=6))
def test_the_shift_is_that_of_the_book(data, patches):
    prefix, registers = data.draw(st.integers(0, 2), "prefix"), data.draw(st.integers(1, 2), "registers")
    images, _, width = patches.shape
    front = torch.arange(images * (prefix + registers) * width) % 7 - 3.0
    acts = torch.cat([front.reshape(images, -1, width), patches], dim=1)
    neurons = data.draw(st.lists(st.integers(0, width - 1), min_size=1, unique=True), "neurons")
    options = {
        "shift_value": data.draw(st.sampled_from(sorted(SHIFT_VALUES))),
        "shift_fill": data.draw(st.sampled_from(sorted(set(SHIFT_FILLS) - {"outliers"}))),  # no bound to round across
        "shift_scale": data.draw(st.sampled_from([0.0, 1.0, 2.0])),
    }
    found = _shift(
        acts,
        neurons=neurons,
        layout=TokenLayout(prefix, registers, (4, 4)),
        value=options["shift_value"],
        fill=options["shift_fill"],
        scale=options["shift_scale"],
    )
    torch.testing.assert_close(found, expected_shift(acts, neurons, prefix, registers, options))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("value", sorted(SHIFT_VALUES))
@pytest.mark.parametrize("fill", sorted(SHIFT_FILLS))
def test_the_dtype_is_kept(dtype, value, fill):
    shifted = _shift(ACTS.to(dtype), value=value, fill=fill, scale=2.0)
    assert shifted.dtype == dtype
    torch.testing.assert_close(shifted.float(), _shift(ACTS, value=value, fill=fill, scale=2.0))
