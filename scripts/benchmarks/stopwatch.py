"""Where the time of a calibration's pass over its images goes: computing, or sums over processes, or neither."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from ttreg_hf.images.batches import Batch
from ttreg_hf.measuring.interleaved import synchronize


class Stopwatch:
    """One process's; `watch` is the `progress` of a calibration.

    Args:
        accelerator: whose sums are timed from now on.
    """

    def __init__(self, accelerator: Any) -> None:
        self._device, self._reduce = accelerator.device, accelerator.reduce
        accelerator.reduce = self._timed_reduce
        self._stage = ""
        self._start = self._end = 0.0
        self._spans: list[tuple[Any, Any]] = []  # of computing, one a batch
        self.reduced = 0.0  # seconds in sums

    @property
    def score_seconds(self) -> float:
        """From asking for the first image that scores to the end of the last sum over processes."""
        return self._end - self._start

    def computed(self) -> float:
        """Seconds that the device computed in the stage that scores."""
        if self._device.type != "cuda":
            return sum(end - start for start, end in self._spans)
        return sum(start.elapsed_time(end) for start, end in self._spans) / 1000

    def watch(self, stage: str, batches: Iterable[Batch], num_images: int) -> Iterator[Batch]:
        """The same batches; of the stage that scores, when each arrived and when it was done."""
        self._stage = stage
        if stage != "score":
            yield from batches
            return
        self._start = time.perf_counter()
        for batch in batches:
            arrived = self._now()
            yield batch
            self._spans.append((arrived, self._now()))
        synchronize(self._device)
        self._end = time.perf_counter()

    def _now(self) -> Any:
        """On a GPU an event, which it passes when it has done all that came before."""
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _timed_reduce(self, values: Tensor, **options: Any) -> Any:
        reduce: Callable[..., Any] = self._reduce
        synchronize(self._device)
        start = time.perf_counter()
        total = reduce(values, **options)
        synchronize(self._device)
        if self._stage == "score":
            self._end = time.perf_counter()
            self.reduced += self._end - start
        return total
