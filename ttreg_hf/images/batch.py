"""Images that go through a model together.

Letters: `B` images, `C` channels, `H`, `W` height and width in pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Images of one size.

    Args:
        pixel_values: `(B, C, H, W)`.
        places: of the images in the global order, rising.
        seen_before: if not `None`, this process has now seen all its images before this place.
        fill_to: to how many images a forward pass of them is best filled up; 0 for as many as there are. A GPU may
            round differently for another number of images, and results are not to depend on how images were shared.
    """

    pixel_values: Tensor
    places: tuple[int, ...]
    seen_before: int | None = None
    fill_to: int = 0

    def __len__(self) -> int:
        return len(self.places)

    def only(self, images: Sequence[int]) -> "Batch":
        """Some of the images, by their rows, rising."""
        pixel_values, places = self.pixel_values[list(images)], tuple(self.places[image] for image in images)
        return replace(self, pixel_values=pixel_values, places=places)

    def with_pixels(self, pixel_values: Tensor) -> "Batch":
        """The same images, changed."""
        return replace(self, pixel_values=pixel_values)

    def to(self, device: torch.device) -> "Batch":
        """The same images there; from pinned memory the host does not wait."""
        return replace(self, pixel_values=self.pixel_values.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """What a `DataLoader` calls."""
        return replace(self, pixel_values=self.pixel_values.pin_memory())
