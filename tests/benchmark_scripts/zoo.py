"""Made models under the names of published checkpoints, on the stand-in Hub, and images that make them fire."""

import json
import tempfile
from pathlib import Path

import datasets
from local_hub import LocalHub
from PIL import Image
from torch import Tensor
from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel, PreTrainedModel

from ttreg_hf.planted import planted_model, synthetic_images
from ttreg_hf.planted.model import TINY

SIZE = TINY["image_size"]
GIANT, BROKEN = "facebook/dinov2-giant", "openai/clip-vit-base-patch16"
_PROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "size": {"height": SIZE, "width": SIZE},
    "image_mean": [0.5] * 3,
    "image_std": [0.125] * 3,  # values from 0 to 1 become -4 to 4
    "do_resize": True,
    "do_normalize": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
}


def fill(hub: LocalHub) -> None:
    """All of the zoo but the giant, and one whose weights are broken."""
    planted = planted_model(neurons_per_layer={2: 3}, strengths=[30.0, 12.0, 10.0]).model
    add(hub, "facebook/dinov2-large", planted)
    add(hub, "google/siglip2-base-patch16-256", planted_model("siglip_vision_model", neurons_per_layer={2: 3}).model)
    clean = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**TINY)).eval()
    add(hub, "facebook/dinov2-with-registers-large", clean)
    add(hub, BROKEN, planted_model("clip_vision_model").model, cut=True)


def add(hub: LocalHub, name: str, model: PreTrainedModel, *, cut: bool = False) -> None:
    """A checkpoint under a published name; `cut`: without the second half of its weights."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        files = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    files["preprocessor_config.json"] = json.dumps(_PROCESSOR).encode()
    if cut:
        files["model.safetensors"] = files["model.safetensors"][: len(files["model.safetensors"]) // 2]
    hub.add_repository(name, files)


def save_pictures(folder: Path, count: int) -> Path:
    """PNG files of images that have flat bright patches."""
    folder.mkdir(parents=True)
    for place, image in enumerate(synthetic_images(count, seed=5)):
        _picture(image).save(folder / f"{place:03}.png")
    return folder


def save_scenes(folder: Path, count: int) -> Path:
    """A data set with masks, splits train and test: the left half is the thing."""
    folder.mkdir(parents=True)
    mask = Image.new("L", (SIZE, SIZE))
    mask.paste(1, (0, 0, SIZE // 2, SIZE))
    for seed, split in enumerate(("train", "test")):
        rows = [{"image": _picture(image), "mask": mask} for image in synthetic_images(count, seed=seed)]
        datasets.Dataset.from_list(rows).to_parquet(folder / f"{split}.parquet")
    return folder


def _picture(image: Tensor) -> Image.Image:
    return Image.fromarray(((image / 8 + 0.5).clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy())
