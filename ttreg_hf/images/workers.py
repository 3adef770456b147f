"""Processes that decode images beside the one that runs the model: how many, and kept from pass to pass."""

import os
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import DataLoader

from ttreg_hf.images.decoding import DecodedImages, collate

_MOST_WORKERS = 16


def decode_workers(device: torch.device, processes: int) -> int:
    """None on a CPU, where the model needs the cores, else a share of the cores."""
    if device.type == "cpu":
        return 0
    return max(1, min(_MOST_WORKERS, (os.cpu_count() or 1) // processes - 1))


class DecodingWorkers:
    """Workers that decode, kept from one pass over images to the next, until nobody holds this any more.

    Where processes are not forked each worker begins with its imports, which take seconds. Passes that run at the same
    time have workers of their own.
    """

    def __init__(self) -> None:
        self._idle: list[DataLoader[Any]] = []

    @contextmanager
    def loader(
        self, images: DecodedImages, batches: Iterable[Any], *, workers: int, pinned: bool
    ) -> Generator[DataLoader[Any]]:
        """A loader for one pass.

        Args:
            images: how they are decoded.
            batches: lists of `(place, raw image)`; closed when the pass ends, wherever it ends.
            workers: 0 decodes in this process.
            pinned: whether what comes is in pinned memory.
        """
        loader = self._idle_one(images, workers, pinned)
        if loader is None:
            loader = DataLoader(
                images,
                batch_sampler=_Passes(),
                num_workers=workers,
                collate_fn=collate,
                pin_memory=pinned,
                persistent_workers=workers > 0,
            )
        passes: Any = loader.batch_sampler
        passes.begin(batches)
        is_sound = False
        try:
            yield loader
            is_sound = True
        except GeneratorExit:  # whoever asked has seen enough
            is_sound = True
            raise
        finally:
            passes.end()
            if is_sound:
                self._idle.append(loader)

    def _idle_one(self, images: DecodedImages, workers: int, pinned: bool) -> DataLoader[Any] | None:
        for index, loader in enumerate(self._idle):
            dataset: Any = loader.dataset
            if (loader.num_workers, loader.pin_memory) == (workers, pinned) and images.do_the_same(dataset):
                return self._idle.pop(index)
        return None


class _Passes:
    """The lists of the pass that runs now: a loader that keeps its workers keeps its sampler too."""

    def __init__(self) -> None:
        self._batches: Iterable[Any] = ()
        self._now: Iterator[Any] | None = None

    def begin(self, batches: Iterable[Any]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[Any]:
        self._now = iter(self._batches)
        return self._now

    def end(self) -> None:
        """Close what reads ahead, and forget whose images these were."""
        close = getattr(self._now, "close", None)
        if close is not None:
            close()
        self._batches, self._now = (), None
