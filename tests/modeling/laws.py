"""What holds for every patched model: functions of a modeling package and a case, that raise where it does not.

The method is written down here a second time, slowly and by hand, from the description in the README.
"""

import importlib
import inspect
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from families import NEURONS, NUM_PATCHES, PATCH_SIZE, SIZE, Case, images, inputs
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.utils import ModelOutput

ALL_OUTPUTS = {"output_hidden_states": True, "output_attentions": True}
SHIFT_DEFAULTS = {"shift_value": "per_neuron", "shift_fill": "zero", "shift_scale": 1.0}


def patched_class(modeling: ModuleType, case: Case) -> type[PreTrainedModel]:
    suitcase = importlib.import_module(f"{modeling.__name__}.modeling_ttreg")
    return getattr(suitcase, suitcase.patched_name(case.stock_class))


def patched_model(
    modeling: ModuleType,
    case: Case,
    stock: PreTrainedModel,
    *,
    register_neurons: Sequence[Sequence[int]] = NEURONS,
    **options: Any,
) -> PreTrainedModel:
    """A patched model made from a config and a state dict, the way `from_pretrained` makes it."""
    cls = patched_class(modeling, case)
    config_class: Any = cls.config_class
    ours = ("model_type", "architectures", "transformers_version")
    fields = {name: value for name, value in stock.config.to_dict().items() if name not in ours}
    config = config_class(**fields, register_neurons=register_neurons, **options)
    config._attn_implementation = stock.config._attn_implementation
    with no_init_weights():
        model = cls(config).train(stock.training)
    model.load_state_dict(stock.state_dict())
    return model


def forward(model: Any, pixel_values: Tensor, **options: Any) -> ModelOutput | tuple:
    """What a model makes of images; of a model with both towers, what depends on the image, in one flat output."""
    output = model(**inputs(getattr(model, "_orig_mod", model), pixel_values), **options)
    if not (isinstance(output, dict) and "vision_model_output" in output):
        return output
    kept = {name: output[name] for name in ("logits_per_image", "image_embeds")}
    return ModelOutput({**kept, **output["vision_model_output"]})


def run(model: Any, pixel_values: Tensor, **options: Any) -> ModelOutput | tuple:
    """`forward` with all outputs, without gradients."""
    with torch.no_grad():
        return forward(model, pixel_values, **{**ALL_OUTPUTS, **options})


def captured(output: Any) -> tuple[Any, Any]:
    """Hidden states and attentions of an output, or of its `return_dict=False` form."""
    if isinstance(output, dict):
        return output["hidden_states"], output["attentions"]
    if output[-1][0].ndim == 3:  # not attentions but the vision tower's output, beginning with its last hidden state
        output = output[-1]
    return output[-2:]


def flat_tensors(output: Any, name: str = "output") -> Iterator[tuple[str, Tensor | None]]:
    """Every tensor of an output, named, in order; `None` is named too."""
    if isinstance(output, Tensor) or output is None:
        yield name, output
    else:
        parts = output.items() if isinstance(output, dict) else enumerate(output)
        for key, part in parts:
            yield from flat_tensors(part, f"{name}.{key}")


def assert_equal_outputs(found: Any, expected: Any, *, exact: bool = True) -> None:
    found, expected = dict(flat_tensors(found)), dict(flat_tensors(expected))
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        other = expected[name]
        if tensor is None or other is None:
            assert tensor is other, name
        elif exact:
            assert torch.equal(tensor, other), name
        else:
            torch.testing.assert_close(
                tensor, other, rtol=2e-4, atol=2e-5, msg=lambda text, name=name: f"{name}: {text}"
            )


def mlp_of(block: Any) -> nn.Module:
    return block.mlp if hasattr(block, "mlp") else block.ffn


def down_projection(block: nn.Module) -> nn.Linear:
    mlp: Any = mlp_of(block)
    return mlp.down_proj if hasattr(mlp, "down_proj") else mlp.fc2


@contextmanager
def reading(module: nn.Module) -> Generator[list[Tensor]]:
    """The tensors that a module reads within the context."""
    seen: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    try:
        yield seen
    finally:
        handle.remove()


def expected_shift(
    acts_BTF: Tensor, neurons: Sequence[int], num_prefix: int, num_registers: int, options: dict[str, Any]
) -> Tensor:
    """The shift by the book: one image and one neuron at a time, in plain numbers."""
    shifted = acts_BTF.clone()
    patches = range(num_prefix + num_registers, acts_BTF.shape[1])
    for image, acts_TF in enumerate(acts_BTF):
        columns = {neuron: acts_TF[:, neuron].tolist() for neuron in neurons}
        for neuron, column in columns.items():
            if options["shift_value"] == "per_layer":
                candidates = [value for token in zip(*columns.values(), strict=True) for value in token]
            else:
                candidates = column[:num_prefix] + [column[token] for token in patches]
            value = options["shift_scale"] * max(candidates, key=abs)
            shifted[image, num_prefix : num_prefix + num_registers, neuron] = value
            on_patches = [column[token] for token in patches]
            mean = sum(on_patches) / len(on_patches)
            deviation = (sum((value - mean) ** 2 for value in on_patches) / len(on_patches)) ** 0.5
            for token in patches:
                shifted[image, token, neuron] = {
                    "zero": 0.0,
                    "mean": mean,
                    "outliers": mean if column[token] > mean + deviation else column[token],
                    "keep": column[token],
                }[options["shift_fill"]]
    return shifted


@dataclass(frozen=True)
class Reference:
    """What a stock model computes if the method is carried out on it by hand.

    Args:
        states: input of the first block and output of every block, with registers.
        attentions: of every block, with registers.
        outputs: the stock model's, fed with those states without registers.
    """

    states: list[Tensor]
    attentions: list[Tensor]
    outputs: ModelOutput


def method_by_hand(
    case: Case,
    stock: PreTrainedModel,
    pixel_values: Tensor,
    *,
    register_neurons: Sequence[Sequence[int]] = NEURONS,
    num_registers: int = 1,
    **options: Any,
) -> Reference:
    """Run a stock model's own parts one by one, with registers and the shift in between."""
    options = {**SHIFT_DEFAULTS, **options}
    prefix = case.family.num_prefix_tokens
    blocks = case.blocks_of(stock)
    attentions: list[Tensor] = []
    tokens, extra = read_by_blocks(case, stock, pixel_values)
    with ExitStack() as hooks, torch.no_grad():
        for layer, block in enumerate(blocks):
            neurons = [neuron for listed, neuron in register_neurons if listed == layer]
            if neurons:
                hook = lambda module, args, neurons=neurons: (  # noqa: E731
                    expected_shift(args[0], neurons, prefix, num_registers, options),
                )
                hooks.callback(down_projection(block).register_forward_pre_hook(hook).remove)
            attention = next(
                module for module in block.children() if hasattr(module, "q_proj") or hasattr(module, "qkv")
            )
            keep = lambda module, args, output: attentions.append(output[1])  # noqa: E731
            hooks.callback(attention.register_forward_hook(keep).remove)
        empty = torch.zeros(tokens.shape[0], num_registers, tokens.shape[2])
        tokens = torch.cat([tokens[:, :prefix], empty, tokens[:, prefix:]], dim=1)
        if case.reads_embeddings(stock) is not blocks[0]:
            tokens = case.reads_embeddings(stock)(tokens)
        states = [tokens]
        names = inspect.signature(type(blocks[0]).forward).parameters
        unmasked = {"attention_mask": None} if "attention_mask" in names else {}
        for block in blocks:
            states.append(block(states[-1], **unmasked, **extra))
    clean = [torch.cat([state[:, :prefix], state[:, prefix + num_registers :]], dim=1) for state in states]
    with ExitStack() as hooks:
        first = blocks[0].register_forward_pre_hook(lambda module, args: (clean[0], *args[1:]))
        hooks.callback(first.remove)
        for block, state in zip(blocks, clean[1:], strict=True):
            hook = lambda module, args, output, state=state: state  # noqa: E731
            hooks.callback(block.register_forward_hook(hook, prepend=True).remove)
        outputs = run(stock, pixel_values, output_attentions=False)
    return Reference(states, attentions, outputs)


def read_by_blocks(case: Case, model: nn.Module, pixel_values: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """The embeddings' tokens, and the positions that blocks of a model with RoPE get."""
    trunk, seen, extra = case.trunk_of(model), [], {}
    with ExitStack() as hooks, torch.no_grad():
        keep = lambda module, args, output: seen.append(output)  # noqa: E731
        hooks.callback(trunk.embeddings.register_forward_hook(keep).remove)
        positions = lambda module, args, kwargs: extra.update(  # noqa: E731
            {name: value for name, value in kwargs.items() if name == "position_embeddings"}
        )
        hooks.callback(case.blocks_of(model)[0].register_forward_pre_hook(positions, with_kwargs=True).remove)
        trunk(**inputs(trunk, pixel_values))
    return seen[0], extra


def without(attention_BHTT: Tensor, prefix: int, num_registers: int) -> Tensor:
    kept = [token for token in range(attention_BHTT.shape[-1]) if not prefix <= token < prefix + num_registers]
    return attention_BHTT[:, :, kept][:, :, :, kept]


def law_outputs_are_those_of_the_method_by_hand(
    modeling: ModuleType, case: Case, *, num_test_time_registers: int = 1, **options: Any
) -> None:
    stock, pixel_values = case.stock_model(), images()
    model = patched_model(modeling, case, stock, num_test_time_registers=num_test_time_registers, **options)
    reference = method_by_hand(case, stock, pixel_values, num_registers=num_test_time_registers, **options)
    found = dict(run(model, pixel_values))
    attentions = found.pop("attentions")
    assert_equal_outputs(found, dict(reference.outputs), exact=False)
    prefix = case.family.num_prefix_tokens
    expected = tuple(without(attention, prefix, num_test_time_registers) for attention in reference.attentions)
    assert_equal_outputs(attentions, expected, exact=False)


def law_down_projections_read_shifted_activations(modeling: ModuleType, case: Case) -> None:
    """In the listed layers the register neurons are moved; all else is as the activation left it, to the bit."""
    model = patched_model(modeling, case, case.stock_model())
    prefix = case.family.num_prefix_tokens
    for layer, block in enumerate(case.blocks_of(model)):
        with reading(mlp_of(block)) as mlp_inputs, reading(down_projection(block)) as acts:
            run(model, images())
        with torch.no_grad():
            expected = activations(mlp_of(block), mlp_inputs[0])
        neurons = [neuron for listed, neuron in NEURONS if listed == layer]
        assert torch.equal(acts[0], expected_shift(expected, neurons, prefix, 1, SHIFT_DEFAULTS))


def activations(mlp: nn.Module, hidden_states: Tensor) -> Tensor:
    """What the MLP's down projection reads without any shift."""
    if hasattr(mlp, "gate_proj"):
        return mlp.act_fn(mlp.gate_proj(hidden_states)) * mlp.up_proj(hidden_states)
    own = mlp.activation_fn if hasattr(mlp, "activation_fn") else mlp.act_fn
    own = own[0] if isinstance(own, nn.Sequential) else own
    return own(mlp.fc1(hidden_states) if hasattr(mlp, "fc1") else mlp.up_proj(hidden_states))


def law_registers_start_as_zeros_between_prefix_and_patches(modeling: ModuleType, case: Case) -> None:
    """As the embeddings' output: without positional embedding, before CLIP's pre-LayerNorm."""
    stock = case.stock_model()
    model = patched_model(modeling, case, stock, num_test_time_registers=2)
    prefix = case.family.num_prefix_tokens
    with reading(case.reads_embeddings(model)) as seen:
        run(model, images())
    with torch.no_grad():
        plain, _ = read_by_blocks(case, stock, images())
    expected = torch.cat([plain[:, :prefix], torch.zeros(3, 2, plain.shape[2]), plain[:, prefix:]], dim=1)
    assert torch.equal(seen[0], expected)


def law_a_register_is_outside_its_own_maximum(modeling: ModuleType, case: Case | None = None) -> None:
    """In `per_neuron`; in `per_layer` it counts, as in the paper's released code."""
    method = modeling.registers
    acts = torch.tensor(
        [[[1.0, 5.0], [-9.0, 8.0], [2.0, 5.0], [-3.0, 5.0]]]
    )  # CLS, register, two patches; two neurons
    layout = method.TokenLayout(1, 1, (4, 4))
    options = {"shift_fill": "zero", "shift_scale": 1.0}
    per_neuron, per_layer = (
        method.shift_neurons(acts, torch.tensor([0]), layout, {**options, "shift_value": value}, None, in_place=False)
        for value in ("per_neuron", "per_layer")
    )
    assert per_neuron[0, :, 0].tolist() == [1.0, -3.0, 0.0, 0.0]
    assert per_layer[0, :, 0].tolist() == [1.0, -9.0, 0.0, 0.0]
    assert torch.equal(per_neuron[..., 1], acts[..., 1])


def law_output_shapes_are_the_stock_models(modeling: ModuleType, case: Case) -> None:
    """As a dict and, with `return_dict=False`, as a tuple."""
    stock = case.stock_model()
    model = patched_model(modeling, case, stock, num_test_time_registers=2)
    for return_dict in (True, False):
        found, expected = (run(each, images(), return_dict=return_dict) for each in (model, stock))
        assert type(found) is type(expected)
        found, expected = (
            {name: None if tensor is None else tensor.shape for name, tensor in flat_tensors(output)}
            for output in (found, expected)
        )
        assert found == expected


def law_a_batch_equals_its_images_one_by_one(modeling: ModuleType, case: Case) -> None:
    model = patched_model(modeling, case, case.stock_model())
    together = dict(flat_tensors(run(model, images(3))))
    alone = [dict(flat_tensors(run(model, image[None]))) for image in images(3)]
    one_by_one = {name: torch.cat([output[name] for output in alone]) for name in together}
    assert_equal_outputs(together, one_by_one, exact=False)


def law_permuting_the_patches_commutes(modeling: ModuleType, case: Case) -> None:
    """Without positional embeddings the order of the patches does not matter to the CLS token, nor to each patch."""
    model = patched_model(modeling, case, case.stock_model())
    with torch.no_grad():
        for name, parameter in case.trunk_of(model).embeddings.named_parameters():
            if "position" in name:
                parameter.zero_()
        for name, buffer in case.trunk_of(model).named_buffers():
            if "inv_freq" in name:  # RoPE that turns nothing
                buffer.zero_()
    order = torch.randperm((SIZE // PATCH_SIZE) ** 2, generator=torch.Generator().manual_seed(1))
    tiles = nn.functional.unfold(images(), PATCH_SIZE, stride=PATCH_SIZE)  # (B, 3 * p * p, N)
    permuted = nn.functional.fold(tiles[..., order], (SIZE, SIZE), PATCH_SIZE, stride=PATCH_SIZE)
    prefix = case.family.num_prefix_tokens
    before, after = run(model, images()), run(model, permuted)
    for one, other in zip(before.hidden_states, after.hidden_states, strict=True):
        expected = torch.cat([one[:, :prefix], one[:, prefix:][:, order]], dim=1)
        torch.testing.assert_close(other, expected, rtol=2e-4, atol=2e-5)


def law_switched_off_it_is_the_stock_model_bit_for_bit(modeling: ModuleType, case: Case) -> None:
    stock, pixel_values = case.stock_model(), images()
    expected = run(stock, pixel_values)
    assert_equal_outputs(run(patched_model(modeling, case, stock, num_test_time_registers=0), pixel_values), expected)
    assert_equal_outputs(run(patched_model(modeling, case, stock, register_neurons=[]), pixel_values), expected)
    model = patched_model(modeling, case, stock)
    with model.disable_test_time_registers():
        assert_equal_outputs(run(model, pixel_values), expected)


PADDED = 5  # patches at the end


def mask_over_tokens(case: Case, count: int = 3) -> dict[str, Tensor]:
    """A mask in which the last patches are padding, `(B, P + N)`, as an argument; none if the model takes none."""
    names = set(inspect.signature(case.stock_class.forward).parameters)
    names -= {"attention_mask"} if case.has_two_towers else set()
    mask = torch.ones(count, case.family.num_prefix_tokens + NUM_PATCHES, dtype=torch.long)
    mask[:, -PADDED:] = 0
    masks = dict.fromkeys(names & {"attention_mask", "pixel_attention_mask"}, mask)
    if "patch_attention_mask" in names:  # over the grid of patches
        masks["patch_attention_mask"] = mask.bool().view(count, SIZE // PATCH_SIZE, SIZE // PATCH_SIZE)
    fed = {"attention_mask", "pixel_attention_mask", "patch_attention_mask", "bool_masked_pos", "head_mask"}
    assert {name for name in names if "mask" in name} <= fed, "a mask that no law feeds"
    return masks


def with_other_padding(pixel_values: Tensor) -> Tensor:
    """The same images with something large in the patches that are padding."""
    changed = pixel_values.clone()
    grid = changed.shape[-1] // PATCH_SIZE
    for place in range(NUM_PATCHES - PADDED, NUM_PATCHES):
        top, left = place // grid * PATCH_SIZE, place % grid * PATCH_SIZE
        changed[:, :, top : top + PATCH_SIZE, left : left + PATCH_SIZE] = 30 * torch.randn(PATCH_SIZE, PATCH_SIZE)
    return changed


def states_without_padding(model: Any, pixel_values: Tensor, mask: dict[str, Tensor]) -> list[Tensor]:
    with torch.no_grad():
        output = model(**{**inputs(model, pixel_values), **mask}, output_hidden_states=True)
    return [state[:, :-PADDED] for state in output.get("vision_model_output", output).hidden_states]


def assert_padding_does_not_matter(
    modeling: ModuleType,
    case: Case,
    mask: dict[str, Tensor],
    attention: str = "eager",
    make: Callable[[PreTrainedModel], Any] | None = None,
    **options: Any,
) -> None:
    stock = case.stock_model(attention=attention)
    model = make(stock) if make else patched_model(modeling, case, stock, output_registers=True, **options)
    pixel_values = images()
    expected = states_without_padding(model, pixel_values, mask)
    assert_equal_outputs(states_without_padding(model, with_other_padding(pixel_values), mask), expected, exact=False)
    without_mask = states_without_padding(model, pixel_values, {})
    assert not torch.allclose(without_mask[-1], expected[-1], rtol=1e-3, atol=1e-3)


def law_what_padding_holds_does_not_matter(modeling: ModuleType, case: Case) -> None:
    """Neither to other tokens nor to the registers, where a model takes a mask over its tokens."""
    if mask_over_tokens(case):
        assert_padding_does_not_matter(modeling, case, mask_over_tokens(case))


LAWS: list[Callable[[ModuleType, Case], None]] = [
    law_registers_start_as_zeros_between_prefix_and_patches,
    law_down_projections_read_shifted_activations,
    law_a_register_is_outside_its_own_maximum,
    law_outputs_are_those_of_the_method_by_hand,
    law_output_shapes_are_the_stock_models,
    law_a_batch_equals_its_images_one_by_one,
    law_permuting_the_patches_commutes,
    law_switched_off_it_is_the_stock_model_bit_for_bit,
    law_what_padding_holds_does_not_matter,
]
