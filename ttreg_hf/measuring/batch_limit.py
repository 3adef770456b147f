"""Forward passes that fit into memory: where it runs out, this batch and later ones go through in halves.

Letters: `B` images, `H`, `W` height and width in pixels.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from ttreg_hf.images.batches import Batch
from ttreg_hf.images.progress import Say, say_nothing
from ttreg_hf.measuring.recorder import Recorder, Recording


class BatchLimit:
    """How many images go through a model at once; learned when memory runs out, and kept for all later passes.

    Args:
        say: takes a line for people.
    """

    def __init__(self, say: Say = say_nothing) -> None:
        self._most: int | None = None
        self._say = say

    def record(self, recorder: Recorder, batch: Batch) -> Iterator[tuple[tuple[int, ...], Recording]]:
        """Places and recording of the batch's images, in as many parts as it takes.

        Raises:
            torch.cuda.OutOfMemoryError: one image alone does not fit.
        """
        start = 0
        while start < len(batch):
            stop = min(len(batch), start + (self._most or len(batch)))
            images = batch.pixel_values[start:stop]
            recording = self._try(recorder, _filled(images, min(batch.fill_to, self._most or batch.fill_to)))
            if recording is not None:
                yield batch.places[start:stop], recording.of(slice(stop - start))
                start = stop

    def _try(self, recorder: Recorder, pixel_values: Tensor) -> Recording | None:
        try:
            return recorder(pixel_values)
        except torch.cuda.OutOfMemoryError:
            if len(pixel_values) == 1:
                raise
        # outside the handler, which keeps the failed pass's tensors alive
        torch.cuda.empty_cache()
        self._most = len(pixel_values) // 2
        self._say(f"out of memory with {len(pixel_values)} images at once, going on with {self._most}")
        return None


def _filled(pixel_values: Tensor, count: int) -> Tensor:
    """Repeats of the images behind them, up to so many."""
    if len(pixel_values) >= count:
        return pixel_values
    return pixel_values.repeat(-(-count // len(pixel_values)), 1, 1, 1)[:count]
