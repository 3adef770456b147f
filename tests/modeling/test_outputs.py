"""What a patched model gives out, with and without its registers."""

import pytest
import torch
from families import BARE_CASES, NEURONS, NUM_PATCHES, SIZE, SOME_CASES, images

from modeling.laws import (
    ALL_OUTPUTS,
    assert_equal_outputs,
    captured,
    forward,
    method_by_hand,
    patched_model,
    run,
    without,
)
from ttreg_hf import modeling


def _model(case, **options):
    return patched_model(modeling, case, case.stock_model(), **options)


def test_hidden_states_are_the_raw_outputs_of_the_blocks_without_registers(case):
    model = _model(case)
    raw = []
    for block in case.blocks_of(model):  # ahead of the hook that removes the registers
        block.register_forward_hook(lambda module, args, output: raw.append(output), prepend=True)
    found = run(model, images()).hidden_states
    prefix = case.family.num_prefix_tokens
    expected = [torch.cat([state[:, :prefix], state[:, prefix + 1 :]], dim=1) for state in raw]
    assert len(found) == len(expected) + 1
    assert_equal_outputs(found[1:], tuple(expected))


@pytest.mark.parametrize("return_dict", [True, False])
def test_output_registers_keeps_them_in_hidden_states_and_attentions(case, return_dict):
    reference = method_by_hand(case, case.stock_model(), images(), num_registers=2)
    model = _model(case, num_test_time_registers=2, output_registers=True)
    found = run(model, images(), return_dict=return_dict)
    hidden_states, attentions = captured(found)
    assert_equal_outputs(hidden_states, tuple(reference.states), exact=False)
    assert_equal_outputs(attentions, tuple(reference.attentions), exact=False)


@pytest.mark.parametrize("return_dict", [True, False])
def test_output_registers_changes_no_bit_of_heads_pooling_and_feature_maps(case, return_dict):
    options = {"return_dict": return_dict, "output_attentions": False, "output_hidden_states": False}
    plain, kept = (run(_model(case, output_registers=flag), images(), **options) for flag in (False, True))
    if not return_dict:
        pairs = list(zip(kept, plain, strict=True))
        pairs = [pair for pair in pairs if isinstance(pair[0], tuple) or pair[0].shape == pair[1].shape]
        assert len(pairs) == len(plain) - case.is_bare  # a bare model's tokens
        return assert_equal_outputs([one for one, _ in pairs], [other for _, other in pairs])
    assert plain.keys() == kept.keys()
    for name in plain.keys() - {"last_hidden_state"}:
        assert_equal_outputs(kept[name], plain[name])
    return None


def test_output_registers_keeps_them_in_a_bare_models_last_hidden_state(bare_case):
    plain, kept = (run(_model(bare_case, output_registers=flag), images()) for flag in (False, True))
    layout = _model(bare_case, output_registers=True).token_layout
    assert kept.last_hidden_state.shape[1] == plain.last_hidden_state.shape[1] + 1
    assert torch.equal(layout.remove(kept.last_hidden_state), plain.last_hidden_state)


def test_removed_hidden_states_and_attentions_are_the_kept_ones_without_registers(case):
    plain, kept = (run(_model(case, output_registers=flag), images()) for flag in (False, True))
    layout = _model(case, output_registers=True).token_layout
    assert_equal_outputs(tuple(layout.remove(state) for state in kept.hidden_states), plain.hidden_states)
    prefix = case.family.num_prefix_tokens
    assert_equal_outputs(tuple(without(each, prefix, 1) for each in kept.attentions), plain.attentions)


def test_kept_attention_rows_sum_to_one_and_cut_ones_to_less(bare_case):
    plain, kept = (run(_model(bare_case, output_registers=flag), images()) for flag in (False, True))
    for cut, whole in zip(plain.attentions, kept.attentions, strict=True):
        torch.testing.assert_close(whole.sum(-1), torch.ones_like(whole.sum(-1)))
        assert (cut.sum(-1) < 1 + 1e-6).all()
        assert (cut.sum(-1) < 1).any()


@pytest.mark.parametrize("output_registers", [False, True])
def test_chosen_hidden_states_are_those_among_all(case, output_registers):
    """transformers takes indices for `output_hidden_states`, and gives `None` elsewhere.

    What they count is the stock class's affair: older releases leave the embeddings' output out.
    """
    model = _model(case, output_registers=output_registers)
    every = run(model, images()).hidden_states
    chosen, expected = (
        run(each, images(), output_hidden_states=[1, -1]).hidden_states for each in (model, case.stock_model())
    )
    kept = [place for place, state in enumerate(expected) if state is not None]
    assert kept
    assert [place for place, state in enumerate(chosen) if state is not None] == kept
    among_all = every[-len(expected) :]
    assert_equal_outputs([chosen[place] for place in kept], [among_all[place] for place in kept])


@pytest.mark.parametrize("option", sorted(ALL_OUTPUTS))
@pytest.mark.parametrize("output_registers", [False, True])
def test_one_kind_of_captured_output_at_a_time_is_that_among_all(case, option, output_registers):
    model = _model(case, output_registers=output_registers)
    name = option.removeprefix("output_")
    with torch.no_grad():
        found = forward(model, images(), **{option: True})
    assert_equal_outputs(found[name], run(model, images())[name])
    assert found.get(({"hidden_states", "attentions"} - {name}).pop()) is None


@pytest.mark.parametrize("output_registers", [False, True])
def test_sdpa_gives_what_eager_gives(case, output_registers):
    stock = case.stock_model(attention="sdpa")
    found = run(patched_model(modeling, case, stock, output_registers=output_registers), images())
    expected = dict(run(_model(case, output_registers=output_registers), images()))
    lacks_sdpa = "sdpa" in case.family.lacks
    assert lacks_sdpa or all(attention is None for attention in found.get("attentions") or ())
    expected.pop("attentions")
    assert_equal_outputs({name: found[name] for name in expected}, expected, exact=False)


def test_token_layout_tells_where_the_outputs_tokens_are(bare_case):
    for flag, count in ((False, 0), (True, 2)):
        model = _model(bare_case, num_test_time_registers=2, output_registers=flag)
        layout, hidden = model.token_layout, run(model, images()).last_hidden_state
        assert layout.num_test_time_registers == count
        assert hidden[:, layout.registers].shape[1] == count
        assert hidden[:, layout.prefix].shape[1] == bare_case.family.num_prefix_tokens
        assert layout.patch_map(hidden, SIZE, SIZE).flatten(2).shape[2] == NUM_PATCHES
        with model.disable_test_time_registers():
            assert model.token_layout.num_test_time_registers == 0


def test_images_packed_into_one_sequence_are_refused():
    radio = next(case for case in BARE_CASES if case.family.name == "radio")
    patches = torch.randn(2 * NUM_PATCHES, 3 * 4 * 4)
    grids = torch.tensor([[4, 4], [4, 4]])
    model = _model(radio)
    with pytest.raises(ValueError, match=r"need one sequence of tokens an image, got images packed into one"):
        model(patches, image_grid_hw=grids)
    with model.disable_test_time_registers():
        assert model(patches, image_grid_hw=grids).features.shape[0] == 2 * NUM_PATCHES


def test_num_prefix_tokens_leaves_test_time_registers_out(case):
    assert _model(case, num_test_time_registers=3).num_prefix_tokens == case.family.num_prefix_tokens


DINOS = [case for case in SOME_CASES if case.family.name.startswith("dino")]  # others take images of one size


@pytest.mark.parametrize("case", DINOS, ids=lambda case: case.name)
def test_a_dino_image_of_another_size_gives_the_stock_models_shapes(case):
    stock = case.stock_model()
    wide = torch.randn(2, 3, SIZE, 2 * SIZE)
    found, expected = run(_model(case), wide), run(stock, wide)
    assert [state.shape for state in found.hidden_states] == [state.shape for state in expected.hidden_states]


def test_the_modules_that_shift_are_printed(bare_case):
    text = repr(_model(bare_case))
    for layer in {layer for layer, _ in NEURONS}:
        assert f"neurons={[neuron for listed, neuron in NEURONS if listed == layer]}" in text
