"""What the attention of each block reads of a test-time register: the rows that constant mode makes constants of.

Letters: `B` images, `L` blocks, `T` tokens, `N` patches, `D` channels.
"""

import functools
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ttreg_hf.images.batches import Batch
from ttreg_hf.measuring.batch_limit import BatchLimit
from ttreg_hf.measuring.hooks import Hooks
from ttreg_hf.measuring.recorder import Recorder
from ttreg_hf.measuring.tower import VisionTower
from ttreg_hf.modeling.registers import SHIFT_FILLS


class RegisterRows(Hooks):
    """`with RegisterRows(tower) as rows: rows.add(batch)`.

    Args:
        tower: patched, in token mode; a private copy, whose attentions get hooks while this is open.
        limit: how many images go through it at once.
    """

    def __init__(self, tower: VisionTower, limit: BatchLimit | None = None) -> None:
        super().__init__()
        self.tower, self._limit = tower, limit or BatchLimit()
        self._of_batch: dict[int, tuple[Tensor, Tensor]] = {}  # by layer
        self._registers: list[Tensor] = []
        self._patches: list[Tensor] = []

    def __enter__(self) -> "RegisterRows":
        for layer in range(self.tower.num_layers):
            read = functools.partial(self._read, layer)
            self._handles.append(self.tower.attention(layer).register_forward_pre_hook(read, with_kwargs=True))
        return self

    @torch.no_grad()
    def add(self, batch: Batch) -> None:
        """Take in a batch."""
        with Recorder(self.tower, norm_layers=()) as recorder:
            for places, _ in self._limit.record(recorder, batch):
                rows = [self._of_batch[layer] for layer in range(self.tower.num_layers)]
                registers_BLD, patches_BLD = (torch.stack(each, dim=1) for each in zip(*rows, strict=True))
                self._registers.append(registers_BLD[: len(places)].double().cpu())
                self._patches.append(patches_BLD[: len(places)].double().cpu())

    @property
    def registers_BLD(self) -> Tensor:
        """What each attention read of the first register of each image, float64."""
        return torch.cat(self._registers)

    @property
    def patches_BLD(self) -> Tensor:
        """Of the mean patch, padding left out, float64."""
        return torch.cat(self._patches)

    def _read(self, layer: int, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        given = {**dict(zip(("hidden_states", "attention_mask"), args, strict=False)), **kwargs}
        self.take(layer, given["hidden_states"], given.get("attention_mask"))

    def take(self, layer: int, tokens_BTD: Tensor, mask: Any) -> None:
        """Called by the hooks."""
        layout = self.tower.layout
        seen_BT = layout.seen_by_registers(mask)
        seen_BN = None if seen_BT is None else seen_BT[:, layout.patches]
        mean_BND = SHIFT_FILLS["mean"](tokens_BTD[:, layout.patches].float(), seen_BN)  # the same at each patch
        self._of_batch[layer] = tokens_BTD[:, layout.registers.start], mean_BND[:, 0]


class ShuffledRegisters(Hooks):
    """While it is open, attentions read the register of the image before in the batch; of a batch of one, its own.

    Args:
        tower: patched, in token mode; a private copy.
        first_layer: of those whose attentions do.
    """

    def __init__(self, tower: VisionTower, first_layer: int) -> None:
        super().__init__()
        self.tower, self.first_layer = tower, first_layer

    def __enter__(self) -> "ShuffledRegisters":
        for layer in range(self.first_layer, self.tower.num_layers):
            attention = self.tower.attention(layer)
            self._handles.append(attention.register_forward_pre_hook(self._shuffle, with_kwargs=True))
        return self

    def _shuffle(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        tokens_BTD = args[0] if args else kwargs["hidden_states"]
        shuffled_BTD = tokens_BTD.clone()
        registers = self.tower.layout.registers
        shuffled_BTD[:, registers] = tokens_BTD[:, registers].roll(1, dims=0)
        return ((shuffled_BTD, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": shuffled_BTD})


def rows_of(tower: VisionTower, batches: Iterable[Batch], limit: BatchLimit | None = None) -> RegisterRows:
    """Those of all images, closed again; arguments as in `RegisterRows`."""
    with RegisterRows(tower, limit) as rows:
        for batch in batches:
            rows.add(batch)
    return rows
