"""Seven small real photographs, so that quickstart and calibration run without a network.

Public domain or CC0; `ATTRIBUTION.md` beside this file names author, source and licence of each.
"""

from importlib.resources import files
from pathlib import Path

from PIL import Image

__all__ = ["load_photographs", "photograph_paths", "photographs_to_picture"]

_PICTURED = ("cat", "coffee", "rocket")


def photograph_paths() -> list[Path]:
    """Paths of the bundled photographs, sorted by file name."""
    folder = Path(str(files(__name__)))
    return sorted(folder.glob("*.jpg"))


def photographs_to_picture() -> list[Path]:
    """Paths of the few that pictures of a model are made of."""
    return [path for path in photograph_paths() if path.stem in _PICTURED]


def load_photographs() -> list[Image.Image]:
    """The bundled photographs as RGB images, square, in the order of `photograph_paths()`."""
    return [_load_rgb(path) for path in photograph_paths()]


def _load_rgb(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")
