"""Where each family keeps its parts: one line a family. By it a model's parts are found, and the shift is put in.

A family is named by the `model_type` of its vision tower's config. The tower is found inside any model around it.
"""

from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from .registers import NeuronShift, Registers, ShiftedActivation, ShiftedGatedMLP, TokenLayout


@dataclass(frozen=True)
class Family:
    """Where the trunk of a family keeps its parts, as dotted paths below the trunk.

    Args:
        blocks: the list of transformer blocks.
        prefix: tokens in front of the patches, as numbers and fields of the config that add up.
        embeddings: the module whose output is the token sequence `(B, P + N, D)`.
        encoder: the module that reads it together with a finished mask, where the mask is made of the patches that an
            image has; registers are then put in front of this module, into tokens and mask together.
        captures: the module whose output carries captured `hidden_states` and `attentions`; empty for the trunk.
        pooling_head: a head inside the trunk that attends to all tokens, if there is one.
        mask: the argument of the trunk that says which tokens are not padding.
        patches: an output with all tokens behind the prefix, and its index where the output is a tuple.
        detection_layer: block whose output shows the outlier tokens best in published checkpoints.
    """

    blocks: str
    prefix: tuple[int | str, ...] = (1,)
    embeddings: str = "embeddings"
    encoder: str | None = None
    captures: str = ""
    pooling_head: str | None = None
    mask: str = "attention_mask"
    patches: tuple[str, int] | None = None
    detection_layer: int = -1


_TRAINED_REGISTERS = (1, "num_register_tokens")
_LIKE_CLIP = ("altclip", "blip", "blip_2", "chinese_clip", "clip", "clipseg", "instructblip", "metaclip_2", "owlvit")
_LIKE_IDEFICS = ("idefics2_vision", "idefics3_vision", "smolvlm_vision")
FAMILIES = {
    **{f"{name}_vision_model": Family("encoder.layers") for name in _LIKE_CLIP},
    **dict.fromkeys(_LIKE_IDEFICS, Family("encoder.layers", prefix=(), encoder="encoder")),
    "aimv2_vision_model": Family("encoder.layers", prefix=(), pooling_head="head"),
    "deit": Family("layers", prefix=(2,)),
    "dinov2": Family("encoder.layer", captures="encoder", detection_layer=-2),
    "dinov2_with_registers": Family("encoder.layer", _TRAINED_REGISTERS, captures="encoder", detection_layer=-2),
    "dinov3_vit": Family("model.layer", _TRAINED_REGISTERS, captures="model"),
    "ijepa": Family("layers", prefix=()),
    "internvl_vision": Family("encoder.layer"),
    "owlv2_vision_model": Family("encoder.layers"),
    "janus_vision_model": Family("encoder.layers", prefix=()),
    "pixio": Family("layers", prefix=("n_cls_tokens",)),
    "radio": Family("encoder.layer", ("num_cls_tokens", "num_registers"), captures="encoder", patches=("features", 1)),
    "siglip2_vision_model": Family("encoder.layers", prefix=(), pooling_head="head", mask="pixel_attention_mask"),
    "siglip_vision_model": Family("encoder.layers", prefix=(), pooling_head="head"),
    "tipsv2_vision_model": Family("encoder.layer", _TRAINED_REGISTERS, captures="encoder"),
    **dict.fromkeys(("vit", "vit_msn"), Family("layers")),
}


def base_model_type(config: Any) -> str:
    """The model type of the stock config that a config is, or extends."""
    return str(getattr(config, "model_type", "")).removesuffix("_ttreg")


def trunk_names(model: nn.Module) -> list[str]:
    """The submodules that hold embeddings and blocks of a known family, outermost ones only; `""` is the model."""
    found: list[str] = []
    for name, module in model.named_modules():
        is_inside = any(not outer or name.startswith(f"{outer}.") for outer in found)
        if not is_inside and isinstance(module, PreTrainedModel) and _is_trunk(module):
            found.append(name)
    return found


def trunk_name(model: nn.Module, tower: str | None = None) -> str:
    """The one of `trunk_names` that is meant.

    Args:
        model: stock or patched.
        tower: its dotted path; needed where there are several.

    Raises:
        ValueError: there is none, or several and no choice, or no such one.
    """
    found = trunk_names(model)
    meant = found if tower is None else [name for name in found if name == tower]
    if len(meant) == 1:
        return meant[0]
    raise ValueError(f"`tower` names one vision tower of {type(model).__name__}, got {tower!r}. It holds: {found}.")


def _is_trunk(module: PreTrainedModel) -> bool:
    family = FAMILIES.get(base_model_type(module.config))
    return family is not None and {family.embeddings, family.blocks} <= dict(module.named_modules()).keys()


def family_of_trunk(trunk: PreTrainedModel) -> Family:
    """The line of `FAMILIES` that describes a trunk."""
    return FAMILIES[base_model_type(trunk.config)]


def blocks_of_trunk(trunk: Any) -> Any:
    """The transformer blocks, in order; a block's index is its layer."""
    return trunk.get_submodule(family_of_trunk(trunk).blocks)


def layout_of_trunk(trunk: Any, num_test_time_registers: int = 0) -> TokenLayout:
    """Layout of the tokens that a trunk's blocks see, with so many test-time registers among them."""
    config = trunk.config
    prefix = (part if isinstance(part, int) else getattr(config, part) for part in family_of_trunk(trunk).prefix)
    size = config.patch_size
    return TokenLayout(sum(prefix), num_test_time_registers, (size, size) if isinstance(size, int) else tuple(size))


def find_mlp(block: nn.Module) -> tuple[Any, str]:
    """The module of a block that holds its activation function, and the activation's name."""
    return _find_child(block, ("activation_fn", "act_fn", "intermediate_act_fn"), "an MLP")


def find_attention(block: nn.Module) -> Any:
    """The module of a block that projects to queries, keys and values."""
    return _find_child(block, ("q_proj", "qkv"), "an attention")[0]


def place_shifts(blocks: Any, neurons_by_layer: dict[int, list[int]], registers: Registers) -> None:
    """Put the shift of each layer's neurons into its block, and the hooks on attentions that go with them.

    Raises:
        ValueError: a neuron or a layer that the model does not have.
    """
    widths = [down_projection(block).in_features for block in blocks]
    for layer, neurons in neurons_by_layer.items():
        width = widths[layer] if layer < len(widths) else 0
        if max(neurons) >= width:
            raise ValueError(
                f"`register_neurons` names {layer}/{max(neurons)}; this model has {width} neurons there, and layers 0 "
                f"to {len(widths) - 1}. Recalibrate for this checkpoint, or pass the config it was calibrated with."
            )
    for layer, block in enumerate(blocks):
        place_shift(block, neurons_by_layer.get(layer, []), registers)
    registers.hook_attentions([find_attention(block) for block in blocks])


def place_shift(block: nn.Module, neurons: list[int], registers: Registers) -> None:
    """Put the shift of these neurons into a block, instead of the one it may hold; none takes it out.

    Raises:
        ValueError: an activation function with weights, whose names would change.
    """
    mlp, name = find_mlp(block)
    shift = NeuronShift(neurons, registers) if neurons else nn.Identity()
    if isinstance(mlp, ShiftedGatedMLP):
        mlp.shift = shift.train(mlp.training)
    elif neurons and is_gated(mlp):
        parent, _, child = next(n for n, m in block.named_modules() if m is mlp).rpartition(".")
        setattr(block.get_submodule(parent), child, ShiftedGatedMLP(mlp, shift))
    elif not is_gated(mlp):
        activation = getattr(mlp, name)
        own = activation[0] if isinstance(activation, ShiftedActivation) else activation
        if neurons and any(True for _ in own.parameters()):
            raise ValueError(f"Neurons can be moved behind an activation function without weights, got {own}.")
        setattr(mlp, name, ShiftedActivation(own, shift).train(mlp.training) if neurons else own)


def _find_child(block: nn.Module, names: tuple[str, ...], what: str) -> tuple[Any, str]:
    found = [(module, name) for module in block.modules() for name, _ in module.named_children() if name in names]
    if not found:
        raise ValueError(f"A known block has {what} with one of {', '.join(names)}, got {block}. Please report it.")
    return found[0]


def down_projection(block: nn.Module) -> Any:
    """The MLP's second linear layer; a neuron is one of its inputs."""
    mlp = find_mlp(block)[0]
    return mlp.down_proj if hasattr(mlp, "down_proj") else mlp.fc2


def is_gated(mlp: nn.Module) -> bool:
    return hasattr(mlp, "gate_proj")
