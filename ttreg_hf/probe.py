"""What a checkpoint makes of two fixed images: recorded when it is saved, compared before it is published.

This file runs in two places: imported by this package, and as the source of a fresh interpreter in which ttreg_hf
cannot be imported. So it imports torch, transformers and the standard library only.

Letters: `B` images, `C` colours, `H` height, `W` width.
"""

import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.dynamic_module_utils import get_class_from_dynamic_module

_OUTPUTS = ("logits", "pooler_output", "last_hidden_state", "feature_maps")
_VALUES_OF_AN_OUTPUT = 32  # evenly spaced, per image


def probe_images(config: Any) -> Tensor:
    """Two images of the model's own size: waves, and waves around a flat bright square, where register neurons fire.

    Returns:
        `(2, C, H, W)`, float32, values from -1 to 1.5, the same on every machine.
    """
    size = config.image_size
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    rows = torch.arange(height, dtype=torch.float64)[:, None]
    columns = torch.arange(width, dtype=torch.float64)[None, :]
    waves_CHW = torch.stack(
        [torch.sin(0.9 * (colour + 1) * rows + 0.7 * columns) for colour in range(config.num_channels)]
    )
    images = torch.stack([waves_CHW, waves_CHW.flip(2)])
    images[1, :, height // 4 : height // 2, width // 4 : width // 2] = 1.5
    return images.float()


@torch.no_grad()
def outputs_on_probe(model: Any) -> dict[str, list[list[float]]]:
    """A few values of every output of a float32 model on the CPU, in eval mode.

    Returns:
        Name of the output -> one list of values an image.

    Raises:
        ValueError: an output is not finite.
    """
    given = model(probe_images(model.config))
    outputs = {}
    for name in _OUTPUTS:
        value = given.get(name)
        if value is not None:
            flat = (value[-1] if isinstance(value, tuple) else value).flatten(1)  # feature maps are a tuple
            count = min(_VALUES_OF_AN_OUTPUT, flat.shape[1])
            places = [index * (flat.shape[1] - 1) // max(count - 1, 1) for index in range(count)]
            outputs[name] = flat[:, places].tolist()
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
    if auto_class == "AutoBackbone":  # its from_pretrained takes no local folder (transformers 5.23)
        cls: Any = get_class_from_dynamic_module(reference, folder)
        return cls.from_pretrained(folder, dtype=torch.float32).eval()
    cls = getattr(transformers, auto_class)
    return cls.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()


if __name__ == "__main__":
    sys.modules["ttreg_hf"] = None  # type: ignore[assignment]  # as if it were not installed
    print(json.dumps(outputs_on_probe(load_like_a_stranger(sys.argv[1]))))
