"""One picture per image: what a model makes of it before and after, written as PNG files."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from ttreg_hf.applying import add_test_time_registers
from ttreg_hf.images.decoder import to_pil
from ttreg_hf.images.pixel_values import to_pixel_values
from ttreg_hf.measuring.image_maps import ImageMaps, image_maps, neuron_maps
from ttreg_hf.modeling.modeling_ttreg import TTRegModelMixin
from ttreg_hf.pictures.before_after import plot_before_after
from ttreg_hf.pictures.figures import save_figure

ImageLike = str | Path | Image.Image


def write_before_after(
    base: PreTrainedModel,
    patched: PreTrainedModel | None,
    images: Sequence[ImageLike],
    processor: Any,
    output: str | Path,
    *,
    detection_layer: int,
    norm_threshold: float | None = None,
    neuron: tuple[int, int] | None = None,
    caption: str = "",
) -> list[Path]:
    """Write one PNG per image: photo, patch norms, attention, PCA colours, before and after.

    All images are read before the first picture is written. Each file appears whole or not at all, and replaces one of
    its name.

    Args:
        base: the model before; of a patched model, what it is without its test-time registers.
        patched: the model after; `None` draws one row.
        images: paths or PIL images.
        processor: image processor of the checkpoint.
        output: folder, made if missing.
        detection_layer: block whose patch norms are shown, 0-based; negative ones count from the end.
        norm_threshold: L2 norm at that block above which a patch counts as an outlier token.
        neuron: `(layer, index)` of a neuron to show as well.
        caption: small print below each picture.

    Returns:
        The files, in the order of the images.

    Raises:
        UnidentifiedImageError: a file that is not an image; it is named.
        ValueError: no processor, or a layer or neuron that the model does not have.
    """
    check_images(images)
    stock = add_test_time_registers(base, []) if isinstance(base, TTRegModelMixin) else base
    paths = picture_paths(images, output)
    for image, name, path in zip(images, _names(images), paths, strict=True):
        pixel_values = to_pixel_values(image, processor, name=name)
        before = _maps(stock, pixel_values, detection_layer)
        if neuron is not None:
            before = replace(before, neuron_activation=neuron_maps(stock, pixel_values.unsqueeze(0), neuron)[0])
        figure = plot_before_after(
            seen_photograph(pixel_values, processor),
            before,
            None if patched is None else _maps(patched, pixel_values, detection_layer),
            title=name,
            norm_threshold=norm_threshold,
            neuron_name="" if neuron is None else f"{neuron[0]}/{neuron[1]}",
            caption=caption,
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        save_figure(figure, path)
    return paths


def check_images(images: Sequence[ImageLike]) -> None:
    """Read every image once, so that a wrong one is known before long work.

    Raises:
        OSError: a file that is missing, broken or not an image; it is named.
    """
    for image in images:
        if isinstance(image, Image.Image):
            continue
        if Path(image).is_dir():
            raise IsADirectoryError(f"An image is a file, but {image} is a folder. Give the files in it.")
        try:
            to_pil(image)
        except OSError as error:
            if str(image) in str(error):
                raise
            raise OSError(f"{image} cannot be read as an image: {error}. Replace it.") from error


def picture_paths(images: Sequence[ImageLike], output: str | Path) -> list[Path]:
    """Where `write_before_after` puts each image's picture: named after it, numbered if two have one name."""
    seen: Counter[str] = Counter()
    paths = []
    for name in _names(images):
        stem = Path(name).stem
        seen[stem] += 1
        paths.append(Path(output) / (f"{stem}.png" if seen[stem] == 1 else f"{stem}-{seen[stem]}.png"))
    return paths


def seen_photograph(pixel_values: Tensor, processor: Any) -> Any:
    """What the model sees, as an image again: `(3, H, W)` -> `(H, W, 3)` array from 0 to 1.

    Without a processor that says how it was normalised, its lowest value becomes black and its highest white.
    """
    mean, deviation = getattr(processor, "image_mean", None), getattr(processor, "image_std", None)
    if processor is None:
        low, high = pixel_values.aminmax()
        pixel_values = (pixel_values - low) / (high - low).clamp(min=1e-12)
    elif getattr(processor, "do_normalize", False) and mean is not None and deviation is not None:
        pixel_values = pixel_values * torch.tensor(deviation)[:, None, None] + torch.tensor(mean)[:, None, None]
    return pixel_values.float().clamp(0, 1).permute(1, 2, 0).numpy()


def _maps(model: PreTrainedModel, pixel_values: Tensor, detection_layer: int) -> ImageMaps:
    return image_maps(model, pixel_values.unsqueeze(0), detection_layer=detection_layer)[0]


def _names(images: Sequence[ImageLike]) -> list[str]:
    return [
        f"image-{number}" if isinstance(image, Image.Image) else Path(image).name
        for number, image in enumerate(images, start=1)
    ]
