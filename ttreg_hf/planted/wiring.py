"""Wires single channels, neurons and attention heads of a tiny model of any family. Changes the model in place.

Letters: `B` images, `T` tokens, `N` patches, `D` hidden.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ttreg_hf.known.position_table import position_table
from ttreg_hf.measuring.tower import VisionTower
from ttreg_hf.modeling.families import (
    blocks_of_trunk,
    down_projection,
    family_of_trunk,
    find_attention,
    find_mlp,
    is_gated,
    layout_of_trunk,
)

_CLOSE_TO_ONE = 20.0  # logits this far apart leave next to nothing of the rest
_MARKED = 0.125  # coordinate of the marked rows and columns, from -1 to 1, up to whole numbers
_PREFIX = ("cls", "class", "register", "distillation")


def read_projection(block: nn.Module) -> Any:
    """The linear layer that the block's activation function follows."""
    mlp, _ = find_mlp(block)
    return next(getattr(mlp, name) for name in ("gate_proj", "fc1", "up_proj") if hasattr(mlp, name))


def output_projection(attention: Any) -> Any:
    """The linear layer after the heads."""
    return next(
        getattr(attention, name) for name in ("o_proj", "out_proj", "projection_layer") if hasattr(attention, name)
    )


def write_neuron(block: nn.Module, neuron: int, *, reads_D: Tensor, bias: float, writes_D: Tensor) -> None:
    """The neuron's activation becomes `act(reads . x + bias)`, and it adds its activation times `writes`."""
    mlp, _ = find_mlp(block)
    up = read_projection(block)
    up.weight[neuron], up.bias[neuron] = reads_D, bias
    if is_gated(mlp):
        mlp.up_proj.weight[neuron], mlp.up_proj.bias[neuron] = 0.0, 1.0
    down_projection(block).weight[:, neuron] = writes_D


def silence_neuron(block: nn.Module, neuron: int) -> None:
    """The neuron fires no more, and writes nothing."""
    nothing = torch.zeros(down_projection(block).out_features)
    write_neuron(block, neuron, reads_D=nothing, bias=0.0, writes_D=nothing)


def axis(model: Any, channel: int, length: float = 1.0) -> Tensor:
    """A vector `(D,)` along one channel."""
    vector = torch.zeros(down_projection(blocks_of_trunk(model)[0]).out_features)
    vector[channel] = length
    return vector


def tokens_and_positions(model: Any) -> dict[str, Tensor]:
    """What the embeddings add to the patches or put before them, by name (but AIMv2's norm, which is neither)."""
    return {
        name: parameter
        for name, parameter in _embeddings(model).named_parameters()
        if parameter.shape[-1] == model.config.hidden_size and "norm" not in name
    }


def claim_channel(model: Any, channel: int) -> None:
    """From now on no random weight writes this channel, and none reads it."""
    for parameter in tokens_and_positions(model).values():
        parameter[..., channel] = 0
    filters_of(model)[channel] = 0
    for block in blocks_of_trunk(model):
        attention = find_attention(block)
        for linear in (output_projection(attention), down_projection(block)):
            linear.weight[channel] = 0
            if linear.bias is not None:
                linear.bias[channel] = 0
        for weight in _reading_weights(block):
            weight[:, channel] = 0
    if (pooling := pooling_attention(model)) is not None:
        pooling.in_proj_weight[:, channel] = 0


def read_like(model: Any, channel: int, other: int) -> None:
    """All blocks, and a pooling head, read a channel as they read another: an outlier there makes the same sink."""
    for block in blocks_of_trunk(model):
        for weight in _reading_weights(block):
            weight[:, channel] = weight[:, other]
    if (pooling := pooling_attention(model)) is not None:
        pooling.in_proj_weight[:, channel] = pooling.in_proj_weight[:, other]


def patch_projection(model: Any) -> Any:
    """What makes tokens of patches."""
    return next(module for module in _embeddings(model).modules() if isinstance(module, (nn.Conv2d, nn.Linear)))


def image_side(model: Any) -> int:
    """Height and width in pixels, which are equal, of the images that the model is made for."""
    size = model.config.image_size
    return size if isinstance(size, int) else size[0]


def filters_of(model: Any) -> Tensor:
    """The weight of the patch embedding as `(D, 3, p, p)`; a Linear reads flattened patches, channels last."""
    projection = patch_projection(model)
    if isinstance(projection, nn.Conv2d):
        return projection.weight
    return projection.weight.unflatten(1, (*layout_of_trunk(model).patch_size, -1)).permute(0, 3, 1, 2)


def read_brightness(model: Any, channel: int, gain: float, *, offset: float = 0.0) -> None:
    """A claimed channel becomes a gain times the mean brightness of its patch, plus an offset; 0 on the prefix."""
    filters = filters_of(model)
    filters[channel] = gain / filters[channel].numel()
    table = position_table(model)
    if table is not None:
        table[..., channel] = offset
    else:
        patch_projection(model).bias[channel] = offset


def balance_filters(model: Any, channels: slice) -> None:
    """These channels of the patch embedding see texture alone, so that bright patches have no larger norms."""
    filters = filters_of(model)
    filters[channels] -= filters[channels].mean((1, 2, 3), keepdim=True)


def prefix_parameters(model: Any, names: Sequence[str] = _PREFIX) -> list[Tensor]:
    """The learned tokens in front of the patches, each `(..., D)`; by parts of their names."""
    return [
        parameter
        for name, parameter in _embeddings(model).named_parameters()
        if any(part in name for part in names) and parameter.shape[-1] == model.config.hidden_size
    ]


def pooling_attention(model: Any) -> Any:
    """The attention of a head that pools all tokens, if the model has one."""
    head = family_of_trunk(model).pooling_head
    trunk = model
    return None if head is None or not hasattr(trunk, head) else trunk.get_submodule(head).attention


def write_mean(block: nn.Module, channels: Sequence[int], gain: float) -> None:
    """Head 1 attends to all tokens alike, and adds the mean of some channels, after LayerNorm, to each of them."""
    attention = find_attention(block)
    start = attention.head_dim
    _empty_head(attention, start)
    for place, channel in enumerate(channels, start):
        attention.v_proj.weight[place, channel] = 1.0
        output_projection(attention).weight[channel, place] = gain


def write_attention_to_like(
    block: nn.Module, *, reads_D: Tensor, ordinary: float, special: float, writes_D: Tensor
) -> None:
    """Head 0 of tokens with a high value of `reads . x` attends to such tokens, and adds `writes` to them.

    Args:
        block: whose attention is wired.
        reads_D: direction in the attention's input.
        ordinary: the value of an ordinary token, which attends elsewhere.
        special: the value of the others.
        writes_D: what these add.
    """
    attention = find_attention(block)
    _empty_head(attention, 0)
    still, size = attention.head_dim // 4 - 1, special - ordinary  # RoPE turns this dimension least
    sharpness = math.sqrt(_CLOSE_TO_ONE * math.sqrt(attention.head_dim)) / size
    for linear, zero in ((attention.q_proj, (ordinary + special) / 2), (attention.k_proj, ordinary)):
        linear.weight[still] = sharpness * reads_D
        linear.bias[still] = -sharpness * zero
    attention.v_proj.weight[0], attention.v_proj.bias[0] = reads_D / size, -ordinary / size
    output_projection(attention).weight[:, 0] = writes_D


def write_copied(block: nn.Module, *, asks_D: Tensor, reads_D: Tensor, zero: float, writes_D: Tensor) -> None:
    """Head 1 of all tokens attends to those with 1 or more of `asks . x`, and adds what they hold to each token.

    Args:
        block: whose attention is wired.
        asks_D: direction in the attention's input; ordinary tokens have next to nothing of it.
        reads_D: direction of what is read at those tokens.
        zero: of that, what counts as nothing.
        writes_D: what a token gets for each 1 above that.
    """
    attention = find_attention(block)
    start = attention.head_dim
    _empty_head(attention, start)
    still = start + attention.head_dim // 4 - 1  # RoPE turns this dimension least
    attention.q_proj.bias[still] = math.sqrt(attention.head_dim)
    attention.k_proj.weight[still] = _CLOSE_TO_ONE * asks_D
    attention.v_proj.weight[start], attention.v_proj.bias[start] = reads_D, -zero
    output_projection(attention).weight[:, start] = writes_D


def write_rotary_marks(
    block: nn.Module, *, from_channel: int, prefix_value: float, to_channel: int, length: float
) -> None:
    """Head 0 of the patches at a few fixed positions attends to the prefix token that alone holds a channel.

    A query that is the same everywhere is turned by its position, the key of a prefix token is not: their product is
    large where the turn brings one onto the other.

    Args:
        block: whose attention is wired; its rotary positions are those of the patches only.
        from_channel: held by one prefix token and no patch.
        prefix_value: what that token's channel is after LayerNorm.
        to_channel: where the marked patches get something, and the others next to nothing.
        length: of what a token gets that attends there alone; the marked ones do so by nearly half.
    """
    attention = find_attention(block)
    _empty_head(attention, 0)
    size = attention.head_dim
    height, width, still = 0, size // 4, size // 4 - 1  # fastest turns by row and by column, and the slowest
    logit = 10.0 * math.sqrt(size)
    turned, kept = 2 * math.pi * _MARKED, 1.6  # at the mark the two turns add 2, beside it at most 1
    for place in (height, width):
        attention.q_proj.bias[place] = 1.0
        attention.k_proj.weight[place, from_channel] = logit * math.cos(turned) / prefix_value
        attention.k_proj.weight[place + size // 2, from_channel] = logit * math.sin(turned) / prefix_value
    attention.q_proj.bias[still] = 1.0
    attention.k_proj.weight[still, from_channel] = -kept * logit / prefix_value
    attention.v_proj.weight[0, from_channel] = 1.0 / prefix_value
    output_projection(attention).weight[to_channel, 0] = length


class _Enough(Exception):
    """Ends a forward pass where no more of it is needed."""


@torch.no_grad()
def input_of(model: Any, module: nn.Module, images: Tensor) -> Tensor:
    """What a module reads while the model looks at images, `(B, T, D)`."""
    seen: list[Tensor] = []

    def record(module: Any, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        seen.append(args[0] if args else kwargs["hidden_states"])
        raise _Enough

    handle = module.register_forward_pre_hook(record, with_kwargs=True)
    try:
        model(**VisionTower.of(model).inputs(images))
    except _Enough:
        pass
    finally:
        handle.remove()
    return seen[0]


def patches_of(model: Any, states_BTD: Tensor) -> Tensor:
    """The patch tokens of a state, `(B, N, D)`."""
    return states_BTD[:, layout_of_trunk(model).patches]


def _embeddings(model: Any) -> nn.Module:
    return model.get_submodule(family_of_trunk(model).embeddings)


def _reading_weights(block: nn.Module) -> list[Tensor]:
    attention, (mlp, _) = find_attention(block), find_mlp(block)
    linears = [attention.q_proj, attention.k_proj, attention.v_proj, read_projection(block)]
    return [linear.weight for linear in (*linears, *([mlp.up_proj] if is_gated(mlp) else []))]


def _empty_head(attention: Any, start: int) -> None:
    """The head that begins at this place attends to all tokens alike, and adds nothing."""
    head = slice(start, start + attention.head_dim)
    for linear in (attention.q_proj, attention.k_proj, attention.v_proj):
        linear.weight[head] = 0
        if linear.bias is not None:
            linear.bias[head] = 0
    output_projection(attention).weight[:, head] = 0
