"""Drawn scenes: independent pictures in any number, the same on every machine, for where photographs are too few.

Each has a rough sky, rougher ground, things that stand on it, and one plain disc, which carries no information. They
are no photographs: they show that a chain of programs works, not what a model makes of the world.

Letters: `H`, `W` height and width in pixels.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

_GRAIN = (40.0, 60.0)  # deviation of the noise in sky and ground, of 255
_FEWEST_THINGS, _MOST_THINGS = 3, 6
_DISC = 0.16  # radius, as a share of the side


def draw_scene(number: int, *, size: int = 256) -> Image.Image:
    """The scene of a number, `size` x `size` pixels, RGB."""
    random = np.random.default_rng(number)
    rows, columns = np.mgrid[0:size, 0:size].astype(np.float32) / size
    horizon = random.uniform(0.35, 0.6)
    sky, ground = (_rough(random, size, grain) for grain in _GRAIN)
    picture = np.where((rows < horizon)[..., None], sky, ground)
    for _ in range(int(random.integers(_FEWEST_THINGS, _MOST_THINGS + 1))):
        picture = np.where(_thing(random, rows, columns, horizon)[..., None], _rough(random, size, 50.0), picture)
    row, column = random.uniform(_DISC, 1 - _DISC, size=2)
    disc = np.hypot(rows - row, columns - column) < _DISC
    picture = np.where(disc[..., None], random.uniform(60, 255, size=3), picture)
    return Image.fromarray(picture.round().clip(0, 255).astype(np.uint8))


def draw_scenes(count: int) -> list[Image.Image]:
    """The first so many."""
    return [draw_scene(number) for number in range(count)]


def _rough(random: np.random.Generator, size: int, grain: float) -> Any:
    """`(H, W, 3)`: one colour, with noise of several sizes."""
    noise = np.zeros((size, size), np.float32)
    for cells in (8, 32, 128):
        coarse = Image.fromarray(random.standard_normal((cells, cells), np.float32))
        noise += np.asarray(coarse.resize((size, size), Image.Resampling.BILINEAR))
    colour, strength = random.uniform(40, 215, size=3), random.uniform(0.5, 1.0, size=3) * grain
    return colour.astype(np.float32) + noise[..., None] * strength.astype(np.float32)


def _thing(random: np.random.Generator, rows: Any, columns: Any, horizon: float) -> Any:
    """`(H, W)` bool: a box, a ball or a tent that stands on the ground."""
    foot, middle = random.uniform(horizon, 1.0), random.uniform(0.1, 0.9)
    half_width, height = random.uniform(0.05, 0.15), random.uniform(0.1, 0.4)
    up, across = (foot - rows) / height, np.abs(columns - middle) / half_width
    shapes: tuple[Callable[[], Any], ...] = (
        lambda: (up > 0) & (up < 1) & (across < 1),
        lambda: np.hypot(2 * up - 1, across) < 1,
        lambda: (up > 0) & (up < 1) & (across < 1 - up),
    )
    return shapes[int(random.integers(len(shapes)))]()
