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

Letters: `B` images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ttreg_hf.known.support import stock_model_class
from ttreg_hf.measuring.tower import VisionTower
from ttreg_hf.modeling.families import blocks_of_trunk, down_projection, layout_of_trunk
from ttreg_hf.planted.note import mark_as_planted
from ttreg_hf.planted.parts import (
    quieten,
    write_content_attention,
    write_contrast,
    write_embeddings,
    write_pooling_head,
    write_sink,
)
from ttreg_hf.planted.triggers import TRIGGERS, write_register_neurons
from ttreg_hf.planted.wiring import image_side
from ttreg_hf.register_neuron import RegisterNeuron

TINY = {"hidden_size": 64, "num_hidden_layers": 6, "num_attention_heads": 4, "image_size": 112, "patch_size": 14}


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
    if trigger not in TRIGGERS:
        raise ValueError(f"`trigger` is one of {', '.join(TRIGGERS)}, got {trigger!r}.")
    neurons_per_layer = dict(sorted((neurons_per_layer or {2: 2}).items()))
    random = torch.Generator().manual_seed(seed)
    model = _random_model(family, seed, config_fields)
    blocks = blocks_of_trunk(model)
    if not neurons_per_layer or min(neurons_per_layer) < 1 or max(neurons_per_layer) >= len(blocks) - 1:
        raise ValueError(
            f"`neurons_per_layer` names layers from 1 to {len(blocks) - 2} (the sink needs one more), "
            f"got {sorted(neurons_per_layer)}."
        )
    if images is None:
        patch_size = layout_of_trunk(model).patch_size[0]
        images = synthetic_images(16, size=image_side(model), patch_size=patch_size, seed=seed)
    total = sum(neurons_per_layer.values())
    strengths = list(strengths or [24.0 * 0.9**rank for rank in range(total)])
    if len(strengths) != total:
        raise ValueError(f"`strengths` has one value a neuron, got {len(strengths)} for {total} neurons.")

    with torch.no_grad():
        write_embeddings(model)
        for block in blocks:
            quieten(block)
        write_contrast(blocks[0])
        ordinary = _largest_patch_norm(model, images)
        planted: list[RegisterNeuron] = []
        for layer, count in neurons_per_layer.items():
            fraction = outlier_fraction / len(neurons_per_layer)
            layer_strengths = [strengths.pop(0) for _ in range(count)]
            width = down_projection(blocks[layer]).in_features
            places = torch.randperm(width, generator=random)[:count].tolist()
            write_register_neurons(
                model, layer, dict(zip(places, layer_strengths, strict=True)), trigger, fraction, images, ordinary
            )
            planted += [RegisterNeuron(layer, *found) for found in zip(places, layer_strengths, strict=True)]
        for block in blocks[max(neurons_per_layer) + 1 :]:
            write_sink(block)
        write_content_attention(blocks[-1])
        write_pooling_head(model)
    mark_as_planted(model)
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


def _largest_patch_norm(model: Any, images: Tensor) -> float:
    """Over all blocks' outputs, patches only."""
    layout = layout_of_trunk(model)
    states = model(**VisionTower.of(model).inputs(images), output_hidden_states=True).hidden_states[1:]
    return max(float(state[:, layout.patches].norm(dim=-1).max()) for state in states)
