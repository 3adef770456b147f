"""How large the values are that go into and out of every linear layer of a vision tower: maxima, a batch at a time.

Letters: `B` images, `T` tokens, `C` inputs of a linear layer, `M` linear layers, `X` values.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ttreg_hf.images.batches import Batch
from ttreg_hf.images.processes import Processes
from ttreg_hf.measuring.batch_limit import BatchLimit
from ttreg_hf.measuring.hooks import Hooks
from ttreg_hf.measuring.norms import LogHistogram
from ttreg_hf.measuring.recorder import Recorder
from ttreg_hf.measuring.tower import VisionTower

_MOST_VALUES = 2**16  # of a layer's input in one batch that quantiles are made of, evenly spaced


def linear_layers(tower: VisionTower) -> dict[str, nn.Linear]:
    """The linear layers that the tower's blocks hold, by their names below the trunk, in order."""
    blocks = {id(module) for block in tower.blocks for module in block.modules()}
    return {
        name: module
        for name, module in tower.trunk.named_modules()
        if isinstance(module, nn.Linear) and id(module) in blocks
    }


class LinearRanges(Hooks):
    """`with LinearRanges(tower) as ranges: ranges.add(batch)`; absolute values, everything on the tower's device.

    Args:
        tower: stock or patched; a private copy, whose layers get hooks while the ranges are open.
        limit: how many images go through it at once.
    """

    def __init__(self, tower: VisionTower, limit: BatchLimit | None = None) -> None:
        super().__init__()
        self.tower, self._limit = tower, limit or BatchLimit()
        self._layers = linear_layers(tower)
        self.names = tuple(self._layers)
        device = tower.trunk.device
        self.channel_maxima = {
            name: torch.zeros(layer.in_features, device=device) for name, layer in self._layers.items()
        }
        self.output_max_M = torch.zeros(len(self.names), device=device)
        self._inputs = LogHistogram(len(self.names), device)
        self._of_images: dict[int, tuple[Tensor, Tensor, Tensor]] = {}  # of the batch that goes through, by layer

    def __enter__(self) -> "LinearRanges":
        for place, (name, layer) in enumerate(self._layers.items()):
            self._handles.append(layer.register_forward_hook(self._recording(place, name)))
        return self

    @property
    def input_max_M(self) -> Tensor:
        """Largest input of each layer."""
        return torch.stack([maxima_C.max() for maxima_C in self.channel_maxima.values()])

    def input_quantile_M(self, share: float) -> Tensor:
        """Value below which this share of each layer's inputs lies, to the width of a bin of 1.1 %."""
        return torch.minimum(self._inputs.quantile(share), self.input_max_M.double())

    def input_quantile(self, name: str, share: float) -> Tensor:
        """The same of one layer."""
        return self.input_quantile_M(share)[self.names.index(name)]

    @torch.no_grad()
    def add(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Take in a batch.

        Returns:
            Largest input, largest output and median input of each image and layer, `(B, M)` each.
        """
        parts = []
        with Recorder(self.tower, norm_layers=()) as recorder:
            for places, _ in self._limit.record(recorder, batch):
                found = [self._of_images[place] for place in range(len(self.names))]
                parts.append([torch.stack(values, dim=1)[: len(places)] for values in zip(*found, strict=True)])
        first, second, third = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        return first, second, third

    def merge_processes(self, processes: Processes) -> None:
        """Take in what all other processes saw."""
        self.channel_maxima = {name: processes.max(maxima_C) for name, maxima_C in self.channel_maxima.items()}
        self.output_max_M = processes.max(self.output_max_M)
        self._inputs.counts_LG = processes.sum(self._inputs.counts_LG)

    def _recording(self, place: int, name: str) -> Any:
        def record(layer: Any, args: Any, output: Tensor) -> None:
            given_BX, made_BX = (tensor.detach().abs().float().flatten(1) for tensor in (args[0], output))
            channels_C = args[0].detach().abs().float().flatten(0, -2).amax(0)
            self.channel_maxima[name] = torch.maximum(self.channel_maxima[name], channels_C)
            self.output_max_M[place] = torch.maximum(self.output_max_M[place], made_BX.max())
            some_X = given_BX.flatten()[:: max(1, given_BX.numel() // _MOST_VALUES)]
            self._inputs.add_to(place, some_X)
            step = max(1, given_BX.shape[1] // _MOST_VALUES)
            self._of_images[place] = given_BX.amax(1), made_BX.amax(1), given_BX[:, ::step].median(1).values

        return record


def ranges_of(
    tower: VisionTower,
    batches: Iterable[Batch],
    *,
    limit: BatchLimit | None = None,
    processes: Processes | None = None,
) -> LinearRanges:
    """Those of all images, of all processes.

    Args:
        tower: as in `LinearRanges`.
        batches: this process's images.
        limit: how many images go through the tower at once.
        processes: that share the images.
    """
    with LinearRanges(tower, limit) as ranges:
        for batch in batches:
            ranges.add(batch)
    ranges.merge_processes(processes or Processes())
    return ranges
