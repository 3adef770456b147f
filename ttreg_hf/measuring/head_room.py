"""Head-room: how far the values in a tower's linear layers are from what narrow number formats can hold.

float16 overflows above 65,504. FP8 (e4m3) ends at 448, and is scaled so that the largest value lies there. An int8
step is the largest value / 127: what is smaller than half of it becomes zero.

Letters: `M` linear layers.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from ttreg_hf.images.batches import Batch
from ttreg_hf.images.processes import Processes
from ttreg_hf.measuring.batch_limit import BatchLimit
from ttreg_hf.measuring.linear_ranges import LinearRanges, ranges_of
from ttreg_hf.measuring.tower import VisionTower

FLOAT16_MAX, FP8_MAX, INT8_LEVELS = 65_504.0, 448.0, 127


@dataclass(frozen=True)
class LinearRoom:
    """One linear layer; absolute values over all images and tokens.

    Args:
        name: below the trunk.
        largest_input: that goes into it.
        largest_output: that comes out of it.
        median_input: to 1.1 %.
    """

    name: str
    largest_input: float
    largest_output: float
    median_input: float

    @property
    def largest(self) -> float:
        """Of both."""
        return max(self.largest_input, self.largest_output)

    @property
    def int8_step(self) -> float:
        """Step of int8 with one static scale, over the median input: above 2 most inputs become zero."""
        return self.largest_input / INT8_LEVELS / self.median_input if self.median_input else 0.0


@dataclass(frozen=True)
class HeadRoom:
    """All linear layers of a tower's blocks, in order.

    Args:
        linears: one entry a layer.
    """

    linears: tuple[LinearRoom, ...]

    @classmethod
    def of(cls, ranges: LinearRanges) -> "HeadRoom":
        """Those of ranges that were merged."""
        values = zip(
            ranges.names,
            ranges.input_max_M.tolist(),
            ranges.output_max_M.tolist(),
            ranges.input_quantile_M(0.5).tolist(),
            strict=True,
        )
        return cls(tuple(LinearRoom(*each) for each in values))

    @property
    def largest_input(self) -> LinearRoom:
        """The layer that reads the largest value."""
        return max(self.linears, key=lambda each: each.largest_input)

    @property
    def largest_output(self) -> LinearRoom:
        """The layer that gives the largest value."""
        return max(self.linears, key=lambda each: each.largest_output)

    @property
    def coarsest(self) -> LinearRoom:
        """The layer whose int8 step is the largest, over its median input."""
        return max(self.linears, key=lambda each: each.int8_step)

    def above(self, limit: float) -> int:
        """How many layers read or give a larger value."""
        return sum(each.largest > limit for each in self.linears)


@dataclass(frozen=True)
class HeadRooms:
    """A base model's and its patched twin's, on the same images.

    Args:
        before: the base model's.
        after: the patched model's, registers included.
    """

    before: HeadRoom
    after: HeadRoom


def measure_head_room(
    tower: VisionTower,
    batches: Iterable[Batch],
    *,
    limit: BatchLimit | None = None,
    processes: Processes | None = None,
) -> HeadRoom:
    """The head-room of a tower, bare or inside another model, on some images; arguments as in `ranges_of`."""
    return HeadRoom.of(ranges_of(tower, batches, limit=limit, processes=processes))
