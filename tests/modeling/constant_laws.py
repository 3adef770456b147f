"""What holds for every patched model in constant mode, and with fixed positions; laws as in `laws.py`."""

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any

import torch
from families import NUM_PATCHES, PATCH_SIZE, SIZE, Case, images
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel

from modeling.laws import (
    assert_equal_outputs,
    assert_padding_does_not_matter,
    captured,
    mask_over_tokens,
    patched_class,
    patched_model,
    run,
)

SIDE = SIZE // PATCH_SIZE
SPIKES = [[0, 1], [2, 0]]  # row and column
_WITHOUT_A_TABLE = ("dinov3", "dinov3-gated", "radio", "idefics3", "smolvlm", "tipsv2")


def attention_of(block: nn.Module) -> nn.Module:
    return next(module for module in block.modules() if hasattr(module, "q_proj") or hasattr(module, "qkv"))


@contextmanager
def reading_attentions(case: Case, model: nn.Module) -> Generator[list[Tensor]]:
    """What the attention of each block reads, in the order in which they run."""
    seen: list[Tensor] = []

    def keep(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        seen.append(args[0] if args else kwargs["hidden_states"])

    with ExitStack() as hooks:
        for block in case.blocks_of(model):
            hooks.callback(attention_of(block).register_forward_pre_hook(keep, with_kwargs=True).remove)
        yield seen


def rows_of_one_image(case: Case, modeling: ModuleType, stock: PreTrainedModel, image: Tensor) -> Tensor:
    """What the test-time register of an image `(1, 3, H, W)` feeds into each attention in token mode, `(L, D)`."""
    token = patched_model(modeling, case, stock)
    with reading_attentions(case, token) as seen:
        run(token, image)
    return torch.stack([tokens[0, case.family.num_prefix_tokens] for tokens in seen])


def constant_model(
    modeling: ModuleType, case: Case, stock: PreTrainedModel, rows: Tensor, first: int = 0, **options: Any
) -> Any:
    """A patched model in constant mode whose attentions read these rows from a layer on."""
    cls = patched_class(modeling, case)
    made = patched_model(modeling, case, stock, **options)
    config = cls.config_class(
        **{**made.config.to_dict(), "test_time_register_mode": "constant", "constant_first_layer": first}
    )
    config._attn_implementation = stock.config._attn_implementation
    model = cls(config).train(stock.training)
    missing, unexpected = model.load_state_dict(stock.state_dict(), strict=False)
    assert unexpected == []
    assert [name.split(".")[-1] for name in missing] == ["test_time_register_constants"]
    case.trunk_of(model).test_time_register_constants.copy_(rows[first:])
    return model


def law_rows_of_an_image_do_what_its_register_does(modeling: ModuleType, case: Case) -> None:
    """From the first layer on and for that image: all outputs are those of token mode."""
    stock, image = case.stock_model(), images(1)
    model = constant_model(modeling, case, stock, rows_of_one_image(case, modeling, stock, image))
    found, expected = (dict(run(each, image)) for each in (model, patched_model(modeling, case, stock)))
    assert_equal_outputs(found, expected, exact=False)


def law_rows_are_read_from_the_first_layer_on(modeling: ModuleType, case: Case) -> None:
    """Before it nothing is; no row is anywhere outside the attentions; the layout has no registers."""
    stock, pixel_values = case.stock_model(), images()
    rows = rows_of_one_image(case, modeling, stock, pixel_values[:1])
    zeroed, model = (constant_model(modeling, case, stock, rows, first) for first in (3, 1))
    with reading_attentions(case, model) as seen:
        found = run(model, pixel_values)
    plain, prefix = run(zeroed, pixel_values), case.family.num_prefix_tokens
    assert [tokens.shape[1] - NUM_PATCHES - prefix for tokens in seen] == [0, 1, 1]
    assert all(torch.equal(tokens[:, 0], rows[layer].expand(3, -1)) for layer, tokens in enumerate(seen) if layer)
    assert model.token_layout.num_test_time_registers == 0
    states, others = captured(found)[0], captured(plain)[0]
    assert [state.shape[1] for state in states] == [other.shape[1] for other in others]
    assert [torch.equal(*pair) for pair in zip(states, others, strict=True)][:2] == [True, True]
    assert not torch.allclose(states[2], others[2], rtol=1e-3, atol=1e-3)


def law_constant_mode_switched_off_is_the_stock_model_bit_for_bit(modeling: ModuleType, case: Case) -> None:
    stock, pixel_values = case.stock_model(), images()
    model = constant_model(modeling, case, stock, torch.full((3, stock_width(case, stock)), 2.0))
    expected = run(stock, pixel_values)
    assert not torch.equal(captured(run(model, pixel_values))[0][-1], captured(expected)[0][-1])
    with model.disable_test_time_registers():
        assert_equal_outputs(run(model, pixel_values), expected)
    model.config.num_test_time_registers = 0
    assert_equal_outputs(run(model, pixel_values), expected)


def stock_width(case: Case, stock: PreTrainedModel) -> int:
    return case.trunk_of(stock).config.hidden_size


def law_padding_does_not_matter_in_constant_mode(modeling: ModuleType, case: Case) -> None:
    if mask_over_tokens(case):
        rows = torch.ones(3, stock_width(case, case.stock_model()))
        assert_padding_does_not_matter(
            modeling, case, mask_over_tokens(case), make=lambda stock: constant_model(modeling, case, stock, rows)
        )


def has_a_table(case: Case) -> bool:
    """Whether a family has a learned position table that is added whole; others cannot have spikes in it."""
    return case.family.name not in _WITHOUT_A_TABLE


def with_spikes(case: Case, stock: PreTrainedModel, size: float = 60.0) -> tuple[Tensor, str, Tensor]:
    """Make two rows of a stock model's table spikes in one channel, far above their neighbours.

    Returns:
        the table, its name in the embeddings, and a table `(rows, D)` in which that channel of these rows is what the
        ordinary ones of the eight rows around them have on average.
    """
    embeddings = case.trunk_of(stock).embeddings
    name, table = next(each for each in embeddings.named_parameters() if "position_embedding" in each[0])
    with torch.no_grad():
        rows = table.view(-1, table.shape[-1])
        rows.mul_(0.1)
        grid = rows[-(SIDE**2) :].view(SIDE, SIDE, -1)
        for index, (row, column) in enumerate(SPIKES):
            grid[row, column, 3] += size * (index + 1)
        cured = rows.clone()
        cured_grid = cured[-(SIDE**2) :].view(SIDE, SIDE, -1)
        for row, column in SPIKES:
            around = [
                grid[r, c, 3]
                for r in range(max(row - 1, 0), min(row + 2, SIDE))
                for c in range(max(column - 1, 0), min(column + 2, SIDE))
                if [r, c] not in SPIKES
            ]
            cured_grid[row, column, 3] = torch.stack(around).mean()
    return table, name, cured.view(table.shape)


def law_spikes_of_fixed_positions_are_taken_from_the_patches(modeling: ModuleType, case: Case) -> None:
    """As if the table had been cured; the largest is what the register starts with; no weight changes."""
    if not has_a_table(case):
        return
    stock, pixel_values = case.stock_model(), images()
    table, name, cured = with_spikes(case, stock)
    model = patched_model(modeling, case, stock, fixed_positions=SPIKES, register_neurons=[])
    embeddings, seen = case.trunk_of(stock).embeddings, []
    handle = embeddings.register_forward_hook(lambda module, args, output: seen.append((args, output)))
    before = run(stock, pixel_values)
    handle.remove()
    args, output = seen[0]
    expected = functional_call(embeddings, {name: cured}, args)
    assert not torch.allclose(output, expected, atol=1)
    handle = case.trunk_of(model).embeddings.register_forward_hook(lambda module, args, output: seen.append(output))
    run(model, pixel_values)
    handle.remove()
    prefix = case.family.num_prefix_tokens
    patches = torch.cat([seen[1][:, :prefix], seen[1][:, prefix + 1 :]], dim=1)
    torch.testing.assert_close(patches, expected, rtol=1e-4, atol=1e-3)
    excess = (table - cured).detach().view(-1, table.shape[-1])
    start = excess[excess.norm(dim=1).argmax()].expand(len(pixel_values), -1)
    torch.testing.assert_close(seen[1][:, prefix], start, rtol=1e-4, atol=1e-3)
    with model.disable_test_time_registers():
        assert_equal_outputs(run(model, pixel_values), before)


LAWS = [law for name, law in list(globals().items()) if name.startswith("law_")]
