"""The processes that calibrate together: who this one is, and how their sums become one.

Nothing is exchanged while images are gone through; sums are reduced at the end. A process that fails raises, and its
launcher stops the others.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from torch import Tensor

Item = TypeVar("Item")
Value = TypeVar("Value")


@dataclass(frozen=True)
class Processes:
    """This process among `world`; image g of the global order belongs to rank `g % world`.

    Args:
        rank: of this process.
        world: number of processes.
        accelerator: of Accelerate; `None` for a single process.
    """

    rank: int = 0
    world: int = 1
    accelerator: Any = None

    @classmethod
    def of(cls, accelerator: Any) -> "Processes":
        """Those that an `accelerate.Accelerator` knows; one alone for `None`."""
        if accelerator is None:
            return cls()
        return cls(accelerator.process_index, accelerator.num_processes, accelerator)

    @classmethod
    def launched(cls, device: str | None = None) -> "Processes":
        """Those that `accelerate launch` or `torchrun` started; one alone without a launcher.

        Args:
            device: that each process was asked to use.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        import torch
        from accelerate import Accelerator, InitProcessGroupKwargs

        patience = InitProcessGroupKwargs(timeout=timedelta(hours=1))  # for one that decodes slowly
        # without `cpu=True`, Accelerate takes each process on a machine without a GPU for one alone
        cpu = device == "cpu" or not torch.cuda.is_available()
        return cls.of(Accelerator(cpu=cpu, kwargs_handlers=[patience]))

    @property
    def device(self) -> str | None:
        """That of this process, if a launcher says so."""
        return None if self.accelerator is None else str(self.accelerator.device)

    def end(self) -> None:
        """To be called by all of them when nothing is left to share."""
        if self.accelerator is not None:
            self.accelerator.end_training()

    def sum(self, values: Tensor) -> Tensor:
        """Sum over all processes, on every one of them."""
        return values if self.world == 1 else self.accelerator.reduce(values, reduction="sum")

    def max(self, values: Tensor) -> Tensor:
        """Largest of all processes, element by element, on every one of them."""
        return values if self.world == 1 else self.accelerator.gather(values[None]).amax(0)

    def share(self, value: Any) -> Any:
        """The first process's value, on every one of them."""
        if self.world == 1:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]

    def collect(self, values: list[Any]) -> list[Any]:
        """The lists of all processes as one, on every one of them."""
        if self.world == 1:
            return values
        from accelerate.utils import gather_object

        return list(gather_object(values))

    def map(self, function: Callable[[Item], Value], items: Sequence[Item]) -> list[Value]:
        """The values of all items, on every process; each computes its share of them."""
        mine = [(place, function(items[place])) for place in range(self.rank, len(items), self.world)]
        return [value for _, value in sorted(self.collect(mine), key=lambda pair: pair[0])]
