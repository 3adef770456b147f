"""One picture per image: what a model makes of it before and after, written as PNG files."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import PreTrainedModel

from ttreg_hf.images.decoder import to_pil
from ttreg_hf.pictures.figures import save_figure
from ttreg_hf.pictures.visualization import draw_image

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
    paths = picture_paths(images, output)
    for image, name, path in zip(images, _names(images), paths, strict=True):
        figure = draw_image(
            base,
            patched,
            image,
            processor,
            detection_layer=detection_layer,
            norm_threshold=norm_threshold,
            neuron=neuron,
            title=name,
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


def _names(images: Sequence[ImageLike]) -> list[str]:
    return [
        f"image-{number}" if isinstance(image, Image.Image) else Path(image).name
        for number, image in enumerate(images, start=1)
    ]
