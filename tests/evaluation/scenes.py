"""Scenes whose truth is exact: an object with structure, dim background, a few patches that carry no information.

The object is where the contrast is, so an attention that prefers contrast shows it; its patches are alike. The flat
patches are where planted register neurons fire.
"""

from typing import Any

import torch

SIZE, PATCH = 112, 14


def scenes(num_images: int, *, seed: int = 0) -> list[dict[str, Any]]:
    """Examples as a data set has them: `image` (float tensor), `mask` (0 or 1), `boxes` (xyxy), `label` (0 or 1).

    Label 1: the object is brighter than the background.
    """
    random = torch.Generator().manual_seed(seed)
    return [_scene(random, place % 2) for place in range(num_images)]


def pixels_of(examples: list[dict[str, Any]]) -> torch.Tensor:
    """`(B, 3, H, W)`."""
    return torch.stack([example["image"] for example in examples])


def _scene(random: torch.Generator, label: int) -> dict[str, Any]:
    def integer(low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=random))

    grid = SIZE // PATCH
    height, width = integer(3, 5), integer(3, 5)
    top, left = integer(0, grid - height + 1), integer(0, grid - width + 1)
    mask = torch.zeros(SIZE, SIZE, dtype=torch.long)
    mask[top * PATCH : (top + height) * PATCH, left * PATCH : (left + width) * PATCH] = 1
    image = 0.05 * torch.randn(3, SIZE, SIZE, generator=random) - 0.3
    structure = 0.3 * torch.randn(3, SIZE, SIZE, generator=random) + 0.1 * _stripes() + 0.4 * label
    image = torch.where(mask == 1, image + structure, image)
    free = [
        (row, column) for row in range(0, SIZE, PATCH) for column in range(0, SIZE, PATCH) if not mask[row, column]
    ]
    for place in torch.randperm(len(free), generator=random)[:3].tolist():
        row, column = free[place]
        flat = 0.01 * torch.randn(3, PATCH, PATCH, generator=random) - 0.3
        image[:, row : row + PATCH, column : column + PATCH] = flat
    boxes = [[left * PATCH, top * PATCH, (left + width) * PATCH, (top + height) * PATCH]]
    return {"image": image, "mask": mask.numpy(), "boxes": boxes, "label": label}


def _stripes() -> torch.Tensor:
    rows, columns = torch.arange(SIZE)[:, None], torch.arange(SIZE)[None, :]
    signs = [1.0 - 2.0 * (along.expand(SIZE, SIZE) % 2) for along in (rows, columns, rows + columns)]
    return torch.stack(signs).sum(0)
