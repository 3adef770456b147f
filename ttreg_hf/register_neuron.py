"""The name of one register neuron."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@functools.total_ordering
@dataclass(frozen=True, eq=False)
class RegisterNeuron:
    """One input of a block's MLP down projection that writes outlier tokens.

    It behaves as the pair `(layer, neuron)`: it unpacks to it, equals it, sorts like it, and finds it in a set. The
    score is what was measured of a neuron, not part of its name.

    Args:
        layer: 0-based block.
        neuron: index, the row of the up projection and the column of the down projection.
        score: mean `|activation|` on outlier tokens, then over the images that have one; NaN where nobody measured it.
    """

    layer: int
    neuron: int
    score: float = float("nan")

    def __iter__(self) -> Iterator[int]:
        return iter(self._pair)

    def __len__(self) -> int:
        return 2

    def __getitem__(self, place: Any) -> Any:
        return self._pair[place]

    def __eq__(self, other: object) -> bool:
        return self._pair == other._pair if isinstance(other, RegisterNeuron) else self._pair == other

    def __lt__(self, other: Any) -> bool:
        return self._pair < tuple(other)

    def __hash__(self) -> int:
        return hash(self._pair)

    @property
    def _pair(self) -> tuple[int, int]:
        return self.layer, self.neuron
