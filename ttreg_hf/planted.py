"""Planted models: tiny random ViTs whose register neurons are known, because they were wired in.

What is planted, and why real models do the same:

- A few *register neurons* fire on a few patches and write a huge value on one channel. Real ones do so on patches
  that carry little information: attention has to put its mass somewhere, and a token that nobody misses can hold
  what is global. Two triggers: `"bright"` patches, and patches of `"low_information"` (low contrast).
- After LayerNorm nearly only that channel is left of such a token, so a key that reads it makes an *attention sink*,
  in all blocks after the last planted layer. Its value vector is near zero: the sink takes mass and gives nothing.
- Apart from the sink, the last block's attention prefers patches with contrast.
- The features do not read the channel, so moving it changes them little (the paper's Proposition 1).

A planted model shows the mechanism, not the benefit: its features are random.

Letters: `B` images, `T` tokens, `P` prefix, `N` patches, `D` hidden, `F` neurons.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ttreg_hf.families import blocks_of, family_of, image_inputs, inner_layout, stock_model_class
from ttreg_hf.modeling.ttreg_base import down_projection, find_attention, find_mlp, is_gated
from ttreg_hf.register_neuron import RegisterNeuron

TINY = {"hidden_size": 64, "num_hidden_layers": 6, "num_attention_heads": 4, "image_size": 112, "patch_size": 14}
_BRIGHT, _OUTLIER, _CONTRAST, _CONSTANT = 0, 1, 2, 3
_HIGH_PASS = (4, 5, 6)
_RESERVED = (_BRIGHT, _OUTLIER, _CONTRAST, _CONSTANT, *_HIGH_PASS)
# what a neuron reads: LayerNorm hides all of these channels on tokens that are outliers already, so none fires there
_TRIGGERS = {"bright": {_BRIGHT: 1.0}, "low_information": {_CONSTANT: 1.0, _CONTRAST: -1.0}}
_OUTLIER_NORM = 10.0  # of an outlier token, in units of the largest ordinary one
_SINK_LOGIT = 6.0
_CONTENT_LOGIT = 0.5  # for each standard deviation of contrast, after LayerNorm
_POOLING_LOGIT = 3.0  # likewise, in a pooling head
_RANDOM_STD = 0.02


@dataclass(frozen=True)
class PlantedModel:
    """A stock model and the truth about it.

    Args:
        model: stock transformers model, in eval mode.
        register_neurons: what was planted, strongest first; the score is the median activation where it fires.
        norm_threshold: L2 norm of a block's output that ordinary patches stay well below, and outliers well above.
        sample: the images that the triggers were tuned on, `(B, 3, H, W)`.
    """

    model: PreTrainedModel
    register_neurons: tuple[RegisterNeuron, ...]
    norm_threshold: float
    sample: Tensor


def synthetic_images(num_images: int, *, size: int = 112, patch_size: int = 14, seed: int = 0) -> Tensor:
    """Textured images with a few flat bright patches, 3 to 5 each: both triggers fire there, and nowhere else.

    Returns:
        `(num_images, 3, size, size)`, float32, values about -2 to 2.
    """
    random = torch.Generator().manual_seed(seed)
    grid = size // patch_size
    images = 0.6 * torch.randn(num_images, 3, size, size, generator=random)
    images -= 0.4 * torch.rand(num_images, 3, grid, grid, generator=random).repeat_interleave(
        patch_size, 2
    ).repeat_interleave(patch_size, 3)
    for image in images:
        flat_patches = int(torch.randint(3, 6, (1,), generator=random))
        for place in torch.randperm(grid * grid, generator=random)[:flat_patches].tolist():
            top, left = place // grid * patch_size, place % grid * patch_size
            brightness = 1.2 + 0.8 * torch.rand(1, generator=random)
            texture = 0.05 * torch.rand(1, generator=random)
            noise = torch.randn(3, patch_size, patch_size, generator=random)
            image[:, top : top + patch_size, left : left + patch_size] = brightness + texture * noise
    return images


def planted_model(
    family: str = "dinov2",
    *,
    trigger: str = "bright",
    neurons_per_layer: Mapping[int, int] | None = None,
    strengths: Sequence[float] | None = None,
    seed: int = 0,
    images: Tensor | None = None,
    outlier_fraction: float = 0.05,
    **config_fields: Any,
) -> PlantedModel:
    """A tiny random model of a family with register neurons wired in.

    Args:
        family: a supported base `model_type`, such as `"dinov2"` or `"clip_vision_model"`.
        trigger: what the neurons fire on, `"bright"` patches or patches of `"low_information"`.
        neurons_per_layer: how many register neurons each layer gets; `{2: 2}` by default. Layers count from 1,
            because layer 0 measures the contrast.
        strengths: median activation of each neuron where it fires, in order of layers; graded by default.
        seed: of weights, of the neurons' indices and of the default images.
        images: what to tune the triggers on, `(B, 3, H, W)`; synthetic images by default.
        outlier_fraction: share of the patches of `images` that become outliers, over all planted layers.
        config_fields: over `TINY`, such as `use_swiglu_ffn=True`.

    Raises:
        ValueError: unknown family or trigger, a layer out of range, or a trigger that these images do not separate.
    """
    if trigger not in _TRIGGERS:
        raise ValueError(f"`trigger` is one of {', '.join(_TRIGGERS)}, got {trigger!r}.")
    neurons_per_layer = dict(sorted((neurons_per_layer or {2: 2}).items()))
    random = torch.Generator().manual_seed(seed)
    model = _random_model(family, seed, config_fields)
    blocks = blocks_of(model)
    if not neurons_per_layer or min(neurons_per_layer) < 1 or max(neurons_per_layer) >= len(blocks) - 1:
        raise ValueError(
            f"`neurons_per_layer` names layers from 1 to {len(blocks) - 2} (the sink needs one more), "
            f"got {sorted(neurons_per_layer)}."
        )
    size, patch_size = model.config.image_size, model.config.patch_size
    if images is None:
        images = synthetic_images(16, size=size, patch_size=patch_size, seed=seed)
    total = sum(neurons_per_layer.values())
    strengths = list(strengths or [24.0 * 0.9**rank for rank in range(total)])
    if len(strengths) != total:
        raise ValueError(f"`strengths` has one value a neuron, got {len(strengths)} for {total} neurons.")

    with torch.no_grad():
        _write_embeddings(model)
        for block in blocks:
            _quieten(block)
        _write_contrast(blocks[0])
        ordinary = _largest_patch_norm(model, images)
        planted: list[RegisterNeuron] = []
        for layer, count in neurons_per_layer.items():
            fraction = outlier_fraction / len(neurons_per_layer)
            layer_strengths = [strengths.pop(0) for _ in range(count)]
            width = down_projection(blocks[layer]).in_features
            places = torch.randperm(width, generator=random)[:count].tolist()
            _plant(model, layer, dict(zip(places, layer_strengths, strict=True)), trigger, fraction, images, ordinary)
            planted += [RegisterNeuron(layer, *found) for found in zip(places, layer_strengths, strict=True)]
        for block in blocks[max(neurons_per_layer) + 1 :]:
            _write_sink(block)
        _write_content_attention(blocks[-1])
        _write_pooling_head(model)
    planted.sort(key=lambda neuron: -neuron.score)
    return PlantedModel(model, tuple(planted), 2.0 * ordinary, images)


def _random_model(family: str, seed: int, config_fields: Mapping[str, Any]) -> PreTrainedModel:
    cls: Any = stock_model_class(family)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fields = {**TINY, **config_fields}
        if "intermediate_size" in cls.config_class.__dataclass_fields__:
            fields.setdefault("intermediate_size", 4 * fields["hidden_size"])
        if "num_patches" in cls.config_class.__dataclass_fields__:
            fields.setdefault("num_patches", (fields["image_size"] // fields["patch_size"]) ** 2)
        if "pos_embed_rescale" in cls.config_class.__dataclass_fields__:
            fields |= {"key_bias": True}
        return cls(cls.config_class(**fields, name_or_path=f"planted-{family}")).eval()


def _write_embeddings(model: Any) -> None:
    """Channels of the embeddings: mean brightness, high-pass filters, a constant, and two kept empty."""
    embeddings = model.get_submodule(family_of(model).embeddings)
    projection = next(module for module in embeddings.modules() if isinstance(module, (nn.Conv2d, nn.Linear)))
    filters = _filters(projection, model.config.patch_size)
    has_positions = False
    for name, parameter in embeddings.named_parameters():
        if parameter.shape[-1] == len(filters):  # tokens and positions
            parameter[..., list(_RESERVED)] = 0
            if any(word in name for word in ("cls", "class", "register", "distillation")):
                parameter.normal_(std=0.5, generator=torch.Generator().manual_seed(len(name)))
                parameter[..., list(_RESERVED)] = 0
                parameter[..., _BRIGHT], parameter[..., _CONTRAST] = -2.0, 4.0  # no trigger fires on prefix tokens
            elif parameter.numel() > parameter.shape[-1]:
                parameter[..., _CONSTANT] = 1.0
                has_positions = True
    height, width = filters.shape[2:]
    filters[list(_RESERVED)] = 0
    filters[_BRIGHT] = 2.0 / (3 * height * width)
    rows, columns = torch.arange(height)[:, None], torch.arange(width)[None, :]
    for channel, stripes in zip(_HIGH_PASS, (rows, columns, rows + columns), strict=True):
        pattern = 1.0 - 2.0 * (stripes.expand(height, width) % 2)
        pattern = pattern - pattern.mean()
        filters[channel] = 3.0 * pattern / math.sqrt(3) / pattern.norm()
    if projection.bias is not None:
        projection.bias[list(_RESERVED)] = 0
        projection.bias[_CONSTANT] = 0.0 if has_positions else 1.0


def _filters(projection: Any, patch_size: int) -> Tensor:
    """The weight of the patch embedding as `(D, 3, p, p)`; a Linear reads flattened patches, channels last."""
    if isinstance(projection, nn.Conv2d):
        return projection.weight
    return projection.weight.unflatten(1, (patch_size, patch_size, -1)).permute(0, 3, 1, 2)


def _quieten(block: Any) -> None:
    """Random weights stay small beside what is planted, leave its channels alone, and do not read the outliers."""
    attention, (mlp, _) = find_attention(block), find_mlp(block)
    output = next(getattr(attention, name) for name in ("o_proj", "out_proj") if hasattr(attention, name))
    up = (_read_projection(mlp), *([mlp.up_proj] if is_gated(mlp) else []))
    for linear in (output, *up):
        linear.weight *= min(1.0, _RANDOM_STD / float(linear.weight.std()))
    for linear in (output, down_projection(block)):
        linear.weight[list(_RESERVED)] = 0
        if linear.bias is not None:
            linear.bias[list(_RESERVED)] = 0
    for linear in (attention.v_proj, *up):
        linear.weight[:, _OUTLIER] = 0


def _write_contrast(block: Any) -> None:
    """The last neurons of layer 0 rectify the high-pass channels, and add them up on the contrast channel."""
    down = down_projection(block)
    neuron = down.in_features
    for channel in _HIGH_PASS:
        for sign in (1.0, -1.0):
            neuron -= 1
            direction = torch.zeros(down.out_features)
            direction[channel] = 0.5 * sign
            _write_neuron(block, neuron, direction, 0.0)
            down.weight[_CONTRAST, neuron] = 1.0


def _write_neuron(block: Any, neuron: int, direction_D: Tensor, bias: float) -> None:
    """Make a neuron's activation `act(direction . x + bias)`; a gated MLP's other factor becomes 1."""
    mlp, _ = find_mlp(block)
    up = _read_projection(mlp)
    up.weight[neuron], up.bias[neuron] = direction_D, bias
    if is_gated(mlp):
        mlp.up_proj.weight[neuron], mlp.up_proj.bias[neuron] = 0.0, 1.0


def _read_projection(mlp: Any) -> Any:
    """The linear layer that the activation function follows."""
    return next(getattr(mlp, name) for name in ("gate_proj", "fc1", "up_proj") if hasattr(mlp, name))


def _plant(
    model: Any,
    layer: int,
    strengths: Mapping[int, float],
    trigger: str,
    fraction: float,
    images: Tensor,
    ordinary_norm: float,
) -> None:
    """Wire neurons of one layer: fire on the patches where the trigger is strongest, write the outlier channel."""
    block = blocks_of(model)[layer]
    down = down_projection(block)
    direction = torch.zeros(down.out_features)
    for channel, weight in _TRIGGERS[trigger].items():
        direction[channel] = weight
    trigger_BT = _mlp_input(model, block, images) @ direction
    layout = inner_layout(model)
    ranked = trigger_BT[:, layout.patches].flatten().sort(descending=True).values
    firing = max(2, round(fraction * ranked.numel()))
    bound, median = float(ranked[firing]), float(ranked[firing // 2])
    highest_prefix = max(trigger_BT[:, layout.prefix].flatten().tolist(), default=-math.inf)
    if median - bound < 1e-3 or highest_prefix > bound - (median - bound) / 2:
        raise ValueError(
            f"Layer {layer} cannot tell {firing} patches of these images by the trigger {trigger!r}: it is "
            f"{median:.3f} there, {bound:.3f} elsewhere and {highest_prefix:.3f} on prefix tokens. Give more varied "
            "images."
        )
    for neuron, strength in strengths.items():
        gain = strength / (median - bound)
        _write_neuron(block, neuron, gain * direction, -gain * bound)
        down.weight[:, neuron] = 0
        down.weight[_OUTLIER, neuron] = _OUTLIER_NORM * ordinary_norm / sum(strengths.values())


def _write_sink(block: Any) -> None:
    """Every query asks, in every head, for the direction that keys take on the outlier channel."""
    attention = find_attention(block)
    hidden = attention.k_proj.in_features
    after_norm = math.sqrt(hidden)  # what LayerNorm leaves on the one channel of an outlier token
    head_size = attention.head_dim
    still = head_size // 4 - 1  # RoPE turns this dimension and `2 * still + 1` least
    for place in range(still, attention.k_proj.out_features, head_size):
        attention.q_proj.bias[place] += math.sqrt(head_size)
        attention.k_proj.weight[place, _OUTLIER] = _SINK_LOGIT / after_norm


def _write_content_attention(block: Any) -> None:
    """Queries of the last block prefer patches with contrast: what the attention map shows where no sink spoils it."""
    attention = find_attention(block)
    for place in range(attention.head_dim // 2 - 1, attention.k_proj.out_features, attention.head_dim):
        attention.q_proj.bias[place] += math.sqrt(attention.head_dim)
        attention.k_proj.weight[place, _CONTRAST] = _CONTENT_LOGIT


def _write_pooling_head(model: Any) -> None:
    """A head that attends to all tokens leaves the outliers out too, and prefers patches with contrast."""
    family = family_of(model)
    if family.pooling_head is None or not hasattr(model, family.pooling_head):
        return
    attention = model.get_submodule(family.pooling_head).attention
    query, key, value = attention.in_proj_weight.chunk(3)
    bias = attention.in_proj_bias.chunk(3)[0]
    value[:, _OUTLIER] = 0
    key[:, [_OUTLIER, _CONTRAST]] = 0
    for start in range(0, len(query), attention.head_dim):
        bias[start] += math.sqrt(attention.head_dim)
        key[start, _OUTLIER] = -_SINK_LOGIT / math.sqrt(len(query))
        key[start, _CONTRAST] = _POOLING_LOGIT


def _mlp_input(model: Any, block: Any, images: Tensor) -> Tensor:
    """What the block's MLP reads, `(B, T, D)`, after its LayerNorm."""
    seen: list[Tensor] = []
    mlp, _ = find_mlp(block)
    handle = mlp.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    try:
        model(**image_inputs(model, images))
    finally:
        handle.remove()
    return seen[0]


def _largest_patch_norm(model: Any, images: Tensor) -> float:
    """Over all blocks' outputs, patches only."""
    layout = inner_layout(model)
    states = model(**image_inputs(model, images), output_hidden_states=True).hidden_states[1:]
    return max(float(state[:, layout.patches].norm(dim=-1).max()) for state in states)
