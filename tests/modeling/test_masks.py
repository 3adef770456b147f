"""Attention masks: all see the registers, and padding is nowhere in what these get."""

import inspect
import threading

import pytest
import torch
from families import BARE_CASES, CASES, NUM_PATCHES, PATCH_SIZE, images, inputs
from torch.nn.attention.flex_attention import create_block_mask

from modeling import laws
from modeling.laws import assert_equal_outputs, down_projection, mask_over_tokens, patched_model, reading
from ttreg_hf import modeling
from ttreg_hf.modeling.registers import (
    SHIFT_FILLS,
    SHIFT_VALUES,
    TokenLayout,
    shift_neurons,
)

SIGLIP2 = next(case for case in BARE_CASES if case.family.name == "siglip2")


MASKED = [case for case in CASES if mask_over_tokens(case)]
masked_case = pytest.mark.parametrize("case", MASKED, ids=lambda case: case.name)
masked_bare_case = pytest.mark.parametrize(
    "case", [case for case in MASKED if case.is_bare], ids=lambda case: case.family.name
)


def _over_pairs(case, *, added, count=3):
    """The same as `(B, 1, P + N, P + N)`, boolean or as what is added to the attention logits."""
    tokens = case.family.num_prefix_tokens + NUM_PATCHES
    seen = torch.ones(count, 1, tokens, tokens, dtype=torch.bool)
    seen[..., -laws.PADDED :] = False
    mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min) if added else seen
    return {"attention_mask": mask}


def _is_refused_or_ignored(stock, mask):
    """Whether a stock class takes no such mask."""
    try:
        found = laws.run(stock, images(), **mask)
    except (TypeError, RuntimeError, AttributeError):
        return True
    return torch.equal(found.last_hidden_state, laws.run(stock, images()).last_hidden_state)


def _states(model, pixel_values, mask):
    return laws.states_without_padding(model, pixel_values, mask)


@masked_case
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_what_padding_holds_does_not_matter(case, attention):
    laws.assert_padding_does_not_matter(modeling, case, mask_over_tokens(case), attention)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what transformers and torch call there
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_what_padding_holds_does_not_matter_to_flex_attention_where_tokens_and_mask_are_extended_together():
    """In its own eager form: transformers would compile the kernel, for a minute."""
    case = next(case for case in BARE_CASES if case.family.name == "smolvlm")
    mask = mask_over_tokens(case)
    flex, eager = (
        patched_model(modeling, case, case.stock_model(attention=attention))
        for attention in ("flex_attention", "eager")
    )
    with torch.compiler.set_stance("force_eager"):
        laws.assert_padding_does_not_matter(modeling, case, mask, "flex_attention")
        for given in (mask, {}):
            found, expected = (_states(model, images(), given) for model in (flex, eager))
            assert_equal_outputs(found, expected, exact=False)


@pytest.mark.parametrize(("attention", "added"), [("eager", True), ("sdpa", True), ("sdpa", False)])
def test_what_padding_holds_does_not_matter_to_a_mask_over_pairs(every_bare_case, attention, added):
    if "mask" in every_bare_case.family.lacks:
        assert _is_refused_or_ignored(
            every_bare_case.stock_model(attention=attention), _over_pairs(every_bare_case, added=added)
        )
        return
    laws.assert_padding_does_not_matter(
        modeling, every_bare_case, _over_pairs(every_bare_case, added=added), attention
    )


@pytest.mark.parametrize("shift_fill", SHIFT_FILLS)
@pytest.mark.parametrize("shift_value", SHIFT_VALUES)
def test_padding_is_outside_every_value_and_fill(shift_value, shift_fill):
    options = {"shift_value": shift_value, "shift_fill": shift_fill, "num_test_time_registers": 2}
    for case in (SIGLIP2, BARE_CASES[0]):
        laws.assert_padding_does_not_matter(modeling, case, mask_over_tokens(case), **options)


@masked_bare_case
def test_a_mask_may_be_given_in_its_place(case):
    model = patched_model(modeling, case, case.stock_model())
    mask = mask_over_tokens(case)
    given = {**inputs(model, images()), **mask}
    names = list(inspect.signature(model.forward).parameters)
    in_order = [given.get(name) for name in names[: names.index(next(iter(mask))) + 1]]
    rest = {name: value for name, value in given.items() if name not in names[: len(in_order)]}
    with torch.no_grad():
        assert_equal_outputs(model(*in_order, **rest), model(**given))


@masked_case
def test_no_token_attends_to_padding_and_all_to_the_register(case):
    model = patched_model(modeling, case, case.stock_model(), output_registers=True)
    mask = mask_over_tokens(case)
    with torch.no_grad():
        output = model(**{**inputs(model, images()), **mask}, output_attentions=True)
    tokens = case.family.num_prefix_tokens + NUM_PATCHES
    for attention in output.get("vision_model_output", output).attentions:
        assert attention.shape[-1] == tokens + 1
        assert (attention[..., -laws.PADDED :] == 0).all()
        assert (attention[..., case.family.num_prefix_tokens] > 0).all()


@masked_bare_case
def test_register_neurons_are_silent_on_padding_too(case):
    """So that it cannot become an outlier."""
    model = patched_model(modeling, case, case.stock_model(), register_neurons=[[1, 5]])
    with reading(down_projection(case.blocks_of(model)[1])) as acts:
        _states(model, laws.with_other_padding(images()), mask_over_tokens(case))
    assert (acts[0][:, -laws.PADDED :, 5] == 0).all()


@masked_bare_case
def test_a_mask_does_not_outlive_its_forward_pass(case):
    model = patched_model(modeling, case, case.stock_model())
    before = _states(model, images(), {})
    _states(model, images(), mask_over_tokens(case))
    assert model.registers.forward_pass.mask is None
    assert_equal_outputs(_states(model, images(), {}), before)


def _naflex(grids, length):
    """Images of different grids of patches, padded to one length."""
    random = torch.Generator().manual_seed(3)
    pixel_values, mask = torch.zeros(len(grids), length, 3 * PATCH_SIZE**2), torch.zeros(len(grids), length).long()
    for image, (height, width) in enumerate(grids):
        pixel_values[image, : height * width] = torch.randn(height * width, 3 * PATCH_SIZE**2, generator=random)
        mask[image, : height * width] = 1
    return {"pixel_values": pixel_values, "pixel_attention_mask": mask, "spatial_shapes": torch.tensor(grids)}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("case", [case for case in CASES if case.family is SIGLIP2.family], ids=lambda case: case.name)
def test_a_padded_batch_equals_its_images_one_by_one(case, attention):
    grids = [[4, 4], [2, 5], [3, 1]]
    together = _naflex(grids, 18)
    model = patched_model(modeling, case, case.stock_model(attention=attention), shift_fill="mean")
    texts = {name: value for name, value in inputs(model, images()).items() if name == "input_ids"}
    names = ("image_embeds", "logits_per_image", "pooler_output", "logits")
    with torch.no_grad():
        batch = model(**together, **texts)
        for image, (height, width) in enumerate(grids):
            alone = {name: value[image : image + 1] for name, value in together.items()}
            alone |= {name: alone[name][:, : height * width] for name in ("pixel_values", "pixel_attention_mask")}
            single = model(**alone, **texts)
            for name in names:
                if name in single:
                    torch.testing.assert_close(batch[name][image], single[name][0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_block_that_is_run_again_for_its_gradients_sees_the_same_mask(use_reentrant):
    """And not the one of a later forward pass."""
    case = BARE_CASES[0]
    model = patched_model(modeling, case, case.stock_model()).train()

    def gradients():
        model.zero_grad()
        with_mask = model(images().requires_grad_(True), **mask_over_tokens(case)).last_hidden_state
        without_mask = model(images(seed=1).requires_grad_(True)).last_hidden_state
        (with_mask.square().sum() + without_mask.square().sum()).backward()
        return {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}

    expected = gradients()
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": use_reentrant})
    assert_equal_outputs(gradients(), expected, exact=False)


def test_a_mask_compiles_in_one_graph():
    torch.compiler.reset()
    case = BARE_CASES[0]
    model = patched_model(modeling, case, case.stock_model(attention="sdpa"))
    mask = mask_over_tokens(case)
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        compiled(images(), **mask)  # before any thread has set a mask
        expected = model(images(), **mask)
        assert_equal_outputs(compiled(images(), **mask), expected, exact=False)
        assert model.registers.forward_pass.mask is None
    torch.compiler.reset()


def test_threads_have_masks_of_their_own():
    case = BARE_CASES[0]
    model = patched_model(modeling, case, case.stock_model())
    masks = [mask_over_tokens(case), {}]
    expected = [_states(model, images(), mask) for mask in masks]
    wrong = []

    def serve(number):
        for _ in range(20):
            found = _states(model, images(), masks[number])
            wrong.extend(1 for one, other in zip(found, expected[number], strict=True) if not torch.equal(one, other))

    threads = [threading.Thread(target=serve, args=(number,)) for number in (0, 1, 0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_flex_attention_mask_is_read_too():
    counts = torch.tensor([[True, True, True, False], [True, True, True, True]])
    mask = create_block_mask(lambda image, head, query, key: counts[image, key], 2, None, 4, 4, device="cpu")
    assert torch.equal(TokenLayout(1, 1, (4, 4)).seen_by_registers(mask), counts)


def test_flash_attentions_mask_over_tokens_is_read_as_it_is():
    assert TokenLayout(1, 1, (4, 4)).seen_by_registers(torch.tensor([[1, 1, 1, 0]])).tolist() == [
        [True, True, True, False]
    ]


def test_a_mask_by_hand():
    acts = torch.tensor([[[2.0], [50.0], [1.0], [3.0], [-8.0]]])  # CLS, register, two patches, padding
    seen = torch.tensor([[True, True, True, True, False]])
    layout = TokenLayout(1, 1, (4, 4))
    options = {"shift_value": "per_neuron", "shift_scale": 1.0}

    def shift(fill):
        return shift_neurons(acts, torch.tensor([0]), layout, {**options, "shift_fill": fill}, seen, in_place=False)

    assert shift("zero")[0, :, 0].tolist() == [2, 3, 0, 0, 0]
    assert shift("mean")[0, :, 0].tolist() == [2, 3, 2, 2, 2]
    assert shift("keep")[0, :, 0].tolist() == [2, 3, 1, 3, -8]


def test_a_mask_over_pairs_gets_rows_and_columns():
    layout = TokenLayout(1, 1, (4, 4))
    seen = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 0]], dtype=torch.bool)[None, None]
    expected = [[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 0]]
    assert layout.insert_into_mask(seen)[0, 0].int().tolist() == expected
    added = torch.zeros(seen.shape).masked_fill(~seen, float("-inf"))
    assert (layout.insert_into_mask(added)[0, 0] == 0).int().tolist() == expected
    for mask in (layout.insert_into_mask(seen), layout.insert_into_mask(added)):
        assert layout.seen_by_registers(mask).tolist() == [[True, True, True, False]]
    assert layout.insert_into_mask(seen[:, :, :1]).shape == (1, 1, 1, 4)
