"""A data set with exact masks, boxes and labels, made offline: photographs of things, cut out, on other photographs.

Run it through `scripts/build_composites.py`. Cut-outs are PNG files with an alpha channel, in one folder a class, such
as those of Debian's `tuxpaint-stamps-default` (`/usr/share/tuxpaint/stamps`). No cut-out is in both splits.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image

from ttreg_hf.images.decoder import to_pil
from ttreg_hf.images.image_source import open_images
from ttreg_hf.images.photographs import photograph_paths
from ttreg_hf.writing import whole_directory

_OPAQUE = 128  # alpha from which a pixel belongs to the thing
_LEAST_PIXELS = 400  # of a cut-out; smaller ones are icons
_SHARE_OPAQUE = (0.05, 0.95)  # of a cut-out's rectangle: a full one is a picture, not cut out
_SHARE_OF_SIDE = (0.3, 0.7)  # the longer side of a thing, of the image's
_SHARE_OF_TEST = 0.4  # of the cut-outs of each class


@dataclass(frozen=True)
class Composite:
    """A thing on a background.

    Args:
        image: RGB.
        mask: `(H, W)`, true where the thing is.
        box: left, top, right, bottom of the mask in pixels; the last two are not inside.
    """

    image: Image.Image
    mask: Any
    box: tuple[int, int, int, int]


def compose(background: Image.Image, cutout: Image.Image, *, size: int, random: np.random.Generator) -> Composite:
    """Put a thing somewhere on a square part of a background.

    Args:
        background: RGB.
        cutout: RGBA; its opaque part is the thing.
        size: of the image in pixels.
        random: decides on the part, on place and size of the thing, and whether it is mirrored.
    """
    side = int(min(background.size) * random.uniform(0.5, 1.0))
    left, top = (int(random.integers(0, length - side + 1)) for length in background.size)
    image = background.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BICUBIC)
    thing = cutout.crop(_opaque_part(cutout))
    if random.random() < 0.5:
        thing = thing.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    scale = size * random.uniform(*_SHARE_OF_SIDE) / max(thing.size)
    width, height = (max(1, round(length * scale)) for length in thing.size)
    thing = thing.resize((width, height), Image.Resampling.BICUBIC)
    place = (int(random.integers(0, size - width + 1)), int(random.integers(0, size - height + 1)))
    image.paste(thing, place, thing)
    alpha = Image.new("L", (size, size))
    alpha.paste(thing.getchannel("A"), place)
    mask = np.asarray(alpha) >= _OPAQUE
    rows, columns = np.nonzero(mask)
    box = (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
    return Composite(image, mask, box)


def find_cutouts(folder: Path) -> dict[str, list[Path]]:
    """PNG files that are cut out, by class: the name of the first folder below `folder`.

    Raises:
        FileNotFoundError: there are not two of them in a class, so that none could be kept for testing.
    """
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*.png")):
        parts = path.relative_to(folder).parts
        if len(parts) > 1 and _is_cut_out(path):
            found.setdefault(parts[0], []).append(path)
    found = {name: paths for name, paths in found.items() if len(paths) > 1}
    if not found:
        raise FileNotFoundError(
            f"Cut-outs are PNG files with transparent surroundings, two or more in one folder a class, but {folder} "
            "has none. Give for example /usr/share/tuxpaint/stamps (Debian: tuxpaint-stamps-default)."
        )
    return found


def build_composites(
    cutouts: Path,
    output: Path,
    *,
    backgrounds: Any = None,
    num_train: int = 1000,
    num_test: int = 500,
    size: int = 224,
    seed: int = 0,
    overwrite: bool = False,
) -> dict[str, int]:
    """Write `train.parquet` and `test.parquet`: columns image, mask, boxes (xyxy), label.

    Args:
        cutouts: folder with one folder a class.
        output: folder to write.
        backgrounds: what `open_images` takes; the bundled photographs by default.
        num_train: images to learn from.
        num_test: images to measure.
        size: of the square images in pixels.
        seed: of everything that is drawn.
        overwrite: replace a folder that is there.

    Returns:
        Number of cut-outs used by class. A mask holds 0 for the background and the label + 1 for the thing.
    """
    import datasets

    classes = find_cutouts(cutouts)
    scenery = [to_pil(image) for image in open_images(backgrounds or photograph_paths())]
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "mask": datasets.Image(),
            "boxes": datasets.List(datasets.List(datasets.Value("int32"), length=4)),
            "label": datasets.ClassLabel(names=list(classes)),
        }
    )
    train, test = _split(classes, np.random.default_rng(seed))
    with whole_directory(output, overwrite=overwrite) as folder:
        for name, paths, count, number in (("train", train, num_train, 1), ("test", test, num_test, 2)):
            rows = list(_examples(paths, scenery, count, size, np.random.default_rng([seed, number])))
            datasets.Dataset.from_list(rows, features=features).to_parquet(folder / f"{name}.parquet")
    return {name: len(paths) for name, paths in classes.items()}


def _examples(
    classes: Sequence[Sequence[Path]], scenery: Sequence[Image.Image], count: int, size: int, random: Any
) -> Iterator[dict[str, Any]]:
    """As many of each class as possible; images as they are, so that masks stay exact."""
    for place in range(count):
        label = place % len(classes)
        path = classes[label][int(random.integers(len(classes[label])))]
        background = scenery[int(random.integers(len(scenery)))]
        with Image.open(path) as opened:
            made = compose(background, opened.convert("RGBA"), size=size, random=random)
        mask = Image.fromarray(made.mask.astype(np.uint8) * (label + 1))
        yield {"image": made.image, "mask": mask, "boxes": [list(made.box)], "label": label}


def _split(classes: dict[str, list[Path]], random: Any) -> tuple[list[list[Path]], list[list[Path]]]:
    """Cut-outs of each class to learn from, and others to measure."""
    train, test = [], []
    for paths in classes.values():
        order = [paths[place] for place in random.permutation(len(paths))]
        kept = min(len(order) - 1, max(1, round(_SHARE_OF_TEST * len(order))))
        test.append(order[:kept])
        train.append(order[kept:])
    return train, test


def _is_cut_out(path: Path) -> bool:
    with Image.open(path) as opened:
        if opened.mode not in ("RGBA", "LA", "P"):
            return False
        image = opened.convert("RGBA")
    opaque = np.asarray(image.getchannel("A")) >= _OPAQUE
    if opaque.sum() < _LEAST_PIXELS:
        return False
    low, high = _SHARE_OPAQUE
    left, top, right, bottom = _opaque_part(image)
    return low <= opaque[top:bottom, left:right].mean() <= high


def _opaque_part(image: Image.Image) -> tuple[int, int, int, int]:
    rows, columns = np.nonzero(np.asarray(image.getchannel("A")) >= _OPAQUE)
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


def _command(
    cutouts: Annotated[Path, typer.Argument(help="Folder of PNG cut-outs, one folder a class.")],
    output: Annotated[Path, typer.Option(help="Folder to write.")],
    backgrounds: Annotated[Path | None, typer.Option(help="Folder of photographs. Default: the bundled ones.")] = None,
    num_train: Annotated[int, typer.Option(min=1, help="Images to learn from.")] = 1000,
    num_test: Annotated[int, typer.Option(min=1, help="Images to measure.")] = 500,
    size: Annotated[int, typer.Option(min=16, help="Height and width in pixels.")] = 224,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")] = False,
) -> None:
    """Build a data set with exact masks, boxes and labels from cut-outs on photographs."""
    sizes: Any = {"num_train": num_train, "num_test": num_test, "size": size, "seed": seed, "overwrite": overwrite}
    classes = build_composites(cutouts, output, backgrounds=backgrounds, **sizes)
    print(f"wrote {output}: {num_train} + {num_test} images of {sum(classes.values())} cut-outs")
    print(f"classes: {', '.join(f'{name} ({count})' for name, count in classes.items())}")


def main() -> None:
    """The command line of `scripts/build_composites.py`."""
    typer.run(_command)
