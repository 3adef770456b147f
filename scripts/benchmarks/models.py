"""Random models of published sizes, and what prepares images for them."""

from typing import Any

import torch
from torch import Tensor
from transformers import (
    BitImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    PreTrainedModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from ttreg_hf.calibration.search import Search
from ttreg_hf.measuring.outlier_rule import OutlierRule
from ttreg_hf.measuring.recorder import Recorder
from ttreg_hf.measuring.tower import VisionTower

_OUTLIER_SHARE = 0.02  # of the patches; random weights have no outliers of their own
DINOV2_SIZES: dict[str, dict[str, Any]] = {
    "dinov2-small": {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6},
    "dinov2-base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
    "dinov2-large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16},
    "dinov2-giant": {
        "hidden_size": 1536,
        "num_hidden_layers": 40,
        "num_attention_heads": 24,
        "use_swiglu_ffn": True,
    },
}
_TOWERS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "clip-large": (
        CLIPVisionModel,
        CLIPVisionConfig,
        {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "patch_size": 14,
        },
    ),
    "siglip-so400m": (
        SiglipVisionModel,
        SiglipVisionConfig,
        {
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
            "patch_size": 14,
        },
    ),
}
SIZES = (*DINOV2_SIZES, *_TOWERS)


def random_model(size: str, *, image_size: int, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """A model of a published size with random weights, in eval mode.

    Raises:
        ValueError: an unknown size.
    """
    if size not in SIZES:
        raise ValueError(f"The size is one of {', '.join(SIZES)}, got {size!r}.")
    torch.manual_seed(0)
    with device:
        model: PreTrainedModel
        if size in _TOWERS:
            model_class, config_class, fields = _TOWERS[size]
            model = model_class(config_class(**fields, image_size=image_size))
        else:
            # positional embeddings of the published models are for 518 pixels; interpolating them is part of the cost
            model = Dinov2Model(Dinov2Config(**DINOV2_SIZES[size], image_size=518, patch_size=14))
    return model.eval().to(dtype)  # pyrefly: ignore[bad-argument-type]  # transformers wraps `to`


def processor_for(image_size: int) -> BitImageProcessorPil:
    """Square crops of so many pixels, normalised."""
    side = {"height": image_size, "width": image_size}
    return BitImageProcessorPil(size={"shortest_edge": image_size}, crop_size=side)


def search_of_random(model: PreTrainedModel, pixels: Tensor) -> Search:
    """DINOv2-L's published range, as a share of the depth, and a threshold that some patches of images exceed.

    Args:
        model: of random weights.
        pixels: images, `(B, 3, H, W)`.
    """
    tower = VisionTower.of(model)
    depth = tower.num_layers
    with Recorder(tower, norm_layers=[depth - 2]) as recorder:
        (norms_BT,) = recorder(pixels).norms_LBT
    threshold = norms_BT.flatten().double().quantile(1 - _OUTLIER_SHARE).item()
    return Search(OutlierRule(depth - 2, threshold), first_layer=0, last_layer=depth * 3 // 4 - 1)
