"""What a checkpoint makes of two fixed images: recorded when it is saved, compared before it is published.

This file runs in two places: imported by this package, and as the source of a fresh interpreter in which ttreg_hf
cannot be imported. So it imports torch, transformers and the standard library only.

Letters: `B` images, `C` colours, `H` height, `W` width in pixels, `h`, `w` in patches.
"""

import inspect
import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.dynamic_module_utils import get_class_from_dynamic_module

_OUTPUTS = (
    *("logits", "pooler_output", "last_hidden_state", "feature_maps"),
    *("logits_per_image", "image_embeds", "text_embeds", "predicted_depth"),
    *("alphas", "class_queries_logits", "masks_queries_logits", "pred_boxes"),
)
_VALUES_OF_AN_OUTPUT = 32  # evenly spaced, per image


def probe_inputs(model: Any) -> dict[str, Tensor]:
    """Two fixed images as the model takes them, and two texts where it reads text too; the same on every machine."""
    arguments = inspect.signature(model.forward).parameters
    config = getattr(model.config, "vision_config", None) or getattr(model.config, "backbone_config", None)
    config = config or model.config
    if "spatial_shapes" in arguments:
        given = _flattened_patches(config)
    else:
        size = config.image_size
        height, width = (size, size) if isinstance(size, int) else tuple(size)
        given = {
            "pixel_values": _images(height, width, getattr(config, "num_channels", 3))
        }  # BLIP-2 has no such field
    if "input_ids" in arguments:
        given["input_ids"] = torch.tensor([[1, 2, 3], [3, 1, 2]])
    return given


def _images(height: int, width: int, colours: int) -> Tensor:
    """Waves, and waves around a flat bright square, where register neurons fire.

    Returns:
        `(2, C, H, W)`, float32, values from -1 to 1.5.
    """
    rows = torch.arange(height, dtype=torch.float64)[:, None]
    columns = torch.arange(width, dtype=torch.float64)[None, :]
    waves_CHW = torch.stack([torch.sin(0.9 * (colour + 1) * rows + 0.7 * columns) for colour in range(colours)])
    images = torch.stack([waves_CHW, waves_CHW.flip(2)])
    images[1, :, height // 4 : height // 2, width // 4 : width // 2] = 1.5
    return images.float()


def _flattened_patches(config: Any) -> dict[str, Tensor]:
    """The same for SigLIP 2 (NaFlex), with as many patches as it was trained with; the first image is padded."""
    side, size = math.isqrt(config.num_patches), config.patch_size
    images = _images(side * size, side * size, config.num_channels)
    patches = images.unfold(2, size, size).unfold(3, size, size)  # (B, C, h, w, p, p)
    patches = patches.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)  # (B, h * w, p * p * C)
    grids = torch.tensor([[side - side // 2, side], [side, side]])
    mask = torch.arange(side * side) < grids.prod(1, keepdim=True)
    return {"pixel_values": patches, "pixel_attention_mask": mask.long(), "spatial_shapes": grids}


def probed_part(model: Any) -> Any:
    """The model; of a patched one that needs a prompt, or holds several towers, the tower that is patched."""
    arguments = inspect.signature(model.forward).parameters
    needs_prompt = ("input_ids" in arguments and _has_image_token(model.config)) or "decoder_input_ids" in arguments
    is_one_of_several = getattr(model.config, "tower", None) is not None
    return model.get_submodule(model.trunk_name) if needs_prompt or is_one_of_several else model


def _has_image_token(config: Any) -> bool:
    parts = (getattr(config, name, None) for name in config.sub_configs)
    own = any(hasattr(config, name) for name in ("image_token_id", "image_token_index"))
    return own or any(_has_image_token(part) for part in parts if part is not None)


@torch.no_grad()
def outputs_on_probe(model: Any) -> dict[str, list[list[float]]]:
    """A few values of every output of a float32 model, or of its tower, on the CPU, in eval mode.

    Returns:
        Name of the output -> one list of values an image.

    Raises:
        ValueError: an output is not finite.
    """
    part = probed_part(model)
    given = part(**probe_inputs(part))
    outputs = {}
    for name in _OUTPUTS:
        value = given.get(name)
        if value is not None:
            flat = (value[-1] if isinstance(value, tuple) else value).flatten(1)  # feature maps are a tuple
            count = min(_VALUES_OF_AN_OUTPUT, flat.shape[1])
            indices = [number * (flat.shape[1] - 1) // max(count - 1, 1) for number in range(count)]
            outputs[name] = flat[:, indices].tolist()
    if not all(math.isfinite(number) for rows in outputs.values() for row in rows for number in row):
        raise ValueError("A checkpoint must give finite outputs, got NaN or infinity. Check the weights.")
    return outputs


def load_like_a_stranger(folder: str) -> Any:
    """The model of a checkpoint folder, of the class that was saved, by the code in the folder; float32."""
    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    architecture = config["architectures"][0]
    auto_class, reference = next(
        (name, reference) for name, reference in config["auto_map"].items() if reference.endswith(f".{architecture}")
    )
    # AutoBackbone's from_pretrained takes no local folder (transformers 5.23); other heads have no Auto class
    if auto_class == "AutoBackbone" or not auto_class.startswith("Auto"):
        cls: Any = get_class_from_dynamic_module(reference, folder)
        return cls.from_pretrained(folder, dtype=torch.float32, use_safetensors=True).eval()
    cls = getattr(transformers, auto_class)
    return cls.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32, use_safetensors=True).eval()


if __name__ == "__main__":
    sys.modules["ttreg_hf"] = None  # pyrefly: ignore[unsupported-operation]  # as if it were not installed
    print(json.dumps(outputs_on_probe(load_like_a_stranger(sys.argv[1]))))
