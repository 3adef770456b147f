"""What is known of patches that stand out at the same places in every image, and of what makes them.

Stages are what the patches are after the embeddings (0) and after each block (1 + its layer).

Letters: `S` stages, `N` patches, row by row.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

Place = tuple[int, int]
"""Row and column on a grid of patches, or of the position table."""


def stage_name(stage: int) -> str:
    """Such as `embeddings` or `block 3`."""
    return f"block {stage - 1}" if stage else "embeddings"


def place_on(place: Place, grid: tuple[int, int], other: tuple[int, int]) -> Place:
    """The place of another grid that covers the middle of this one, where both lie over the same image."""
    row, column = ((2 * at + 1) * new // (2 * old) for at, old, new in zip(place, grid, other, strict=True))
    return row, column


@dataclass(frozen=True)
class FixedPosition:
    """A place at which the patch stands out in nearly every image.

    Args:
        row, column: on the images' grid.
        begins: the first stage at which it does, or at which half of that (log of norm over median) was there already.
        ratios: at each stage, norm over the image's median, geometric mean over the images.
    """

    row: int
    column: int
    begins: int
    ratios: tuple[float, ...]

    @property
    def place(self) -> Place:
        return self.row, self.column


@dataclass(frozen=True)
class PositionMap:
    """How often, and by how much, the patch at each place stands out, over images of one grid.

    Args:
        grid: height and width in patches.
        num_images: that are kept patch by patch, of this grid.
        shares: `(S, N)`, share of the images in which the patch stands out from its image.
        ratios: `(S, N)`, norm over the image's median, geometric mean over the images.
        fixed: the places that stand out in nearly every image at some stage, row by row.
    """

    grid: tuple[int, int]
    num_images: int
    shares: tuple[tuple[float, ...], ...]
    ratios: tuple[tuple[float, ...], ...]
    fixed: tuple[FixedPosition, ...]

    @property
    def places(self) -> tuple[Place, ...]:
        """The fixed ones."""
        return tuple(position.place for position in self.fixed)


@dataclass(frozen=True)
class TableSpike:
    """A row of the position table that is much longer than the others.

    Args:
        row, column: on the table's grid.
        norm: L2 norm of the row.
        channel: that holds most of it.
        channel_share: of the squared norm.
    """

    row: int
    column: int
    norm: float
    channel: int
    channel_share: float

    @property
    def place(self) -> Place:
        return self.row, self.column


@dataclass(frozen=True)
class TableReport:
    """A learned position table.

    Args:
        grid: height and width.
        norms: of its rows, row by row.
        median_norm: of these.
        spikes: the longest first.
    """

    grid: tuple[int, int]
    norms: tuple[float, ...]
    median_norm: float
    spikes: tuple[TableSpike, ...]


@dataclass(frozen=True)
class PositionSource:
    """What makes patches stand out at fixed positions, or enlarges them.

    Args:
        stage: where: `position table`, `embeddings` (the table is not it) or such as `block 3`.
        places: on the grid of the images; rows and columns.
        growth: norm over the median after it, over the same before it.
        channel: of the position table, which carries most.
        channel_share: of the rows' squared norm.
        mlp_share: of what a block adds, that goes when its MLP treats the patches there as the others.
        neuron: of that block, whose activation carries most of that.
        neuron_share: of what the block adds, that goes when this neuron alone treats them as the others.
    """

    stage: str
    places: tuple[Place, ...]
    growth: float
    channel: int | None = None
    channel_share: float | None = None
    mlp_share: float | None = None
    neuron: int | None = None
    neuron_share: float | None = None


TABLE = "position table"


@dataclass(frozen=True)
class PositionReport:
    """Patches at fixed positions, and their source.

    Args:
        maps: one for each grid of which there are enough images, that of most images first.
        table: the learned position table, where the model has one.
        sources: where they begin, that of most places first; of the first map.
        amplifier: the block that enlarges them most after that, if one does.
    """

    maps: tuple[PositionMap, ...]
    table: TableReport | None
    sources: tuple[PositionSource, ...]
    amplifier: PositionSource | None = None

    @property
    def places(self) -> tuple[Place, ...]:
        """Those of the first map's grid that are fixed."""
        return self.maps[0].places if self.maps else ()

    @property
    def brief(self) -> "PositionReport":
        """The same without what is known of each ordinary place."""
        maps = tuple(replace(each, shares=(), ratios=()) for each in self.maps)
        return replace(self, maps=maps, table=self.table and replace(self.table, norms=()))

    def in_table(self, places: Sequence[Place]) -> tuple[Place, ...]:
        """The spikes of the position table that make these places of the first map's grid stand out."""
        if self.table is None or not self.maps:
            return ()
        grid = self.maps[0].grid
        return tuple(
            spike.place
            for spike in self.table.spikes
            if any(_touch(place, grid, spike.place, self.table.grid) for place in places)
        )


def _touch(place: Place, grid: tuple[int, int], spike: Place, table: tuple[int, int]) -> bool:
    """Whether a spike of the table reaches a place of the images' grid: where they differ, it is interpolated.

    Bicubic interpolation reaches two rows or columns far, of the coarser of the two.
    """
    if grid == table:
        return place == spike
    sides = zip(place, grid, spike, table, strict=True)
    return all(
        abs((at + 0.5) * long / short - (there + 0.5)) <= 2 * max(1.0, long / short)
        for at, short, there, long in sides
    )
