"""Which places of the grid stand out in nearly every image, by stage; and which rows of the position table do.

Letters: `S` stages (the embeddings' output, then each block's), `B` images, `N` patches, `h`, `w` height and width of
the table, `D` channels.
"""

import math
from collections.abc import Mapping

from torch import Tensor

from ttreg_hf.measuring.position_config import PositionConfig
from ttreg_hf.measuring.position_report import FixedPosition, PositionMap, TableReport, TableSpike

_BEGUN = 0.5  # of the excess of a place, from which on it has begun
_DIGITS = 4  # of what is kept for each place


def position_maps(
    norms_of_grids: Mapping[tuple[int, int], Tensor], settings: PositionConfig
) -> tuple[PositionMap, ...]:
    """One map a grid, that of most images first; grids of too few images are left out.

    Args:
        norms_of_grids: for each grid, norms of its images' patches at each stage, `(S, B, N)`.
        settings: when a place is fixed.
    """
    maps = [
        _position_map(norms_SBN, grid, settings)
        for grid, norms_SBN in norms_of_grids.items()
        if norms_SBN.shape[1] >= settings.min_images
    ]
    return tuple(sorted(maps, key=lambda found: (-found.num_images, found.grid)))


def table_report(table_hwD: Tensor, settings: PositionConfig) -> TableReport:
    """Norms of the rows, and the rows that stand out from the others."""
    grid = (table_hwD.shape[0], table_hwD.shape[1])
    rows_ND = table_hwD.detach().flatten(0, 1).float().cpu()  # (h, w, D) -> (N, D)
    norms_N = rows_ND.norm(dim=1)
    found = _stands_out(_excess(norms_N), settings).nonzero().flatten()
    longest_first = found[norms_N[found].argsort(descending=True)]
    return TableReport(
        grid=grid,
        norms=tuple(_rounded(norms_N)),
        median_norm=float(norms_N.median()),
        spikes=tuple(_spike(rows_ND, index, grid) for index in longest_first.tolist()),
    )


def _position_map(norms_SBN: Tensor, grid: tuple[int, int], settings: PositionConfig) -> PositionMap:
    excess_SBN = _excess(norms_SBN)
    shares_SN = _stands_out(excess_SBN, settings).float().mean(1)
    ratios_SN = excess_SBN.mean(1).exp()
    is_fixed_SN = shares_SN >= settings.fixed_share
    fixed = [
        FixedPosition(
            row=index // grid[1],
            column=index % grid[1],
            begins=_begins(excess_SBN.mean(1)[:, index], is_fixed_SN[:, index]),
            ratios=tuple(_rounded(ratios_SN[:, index])),
        )
        for index in is_fixed_SN.any(0).nonzero().flatten().tolist()
    ]
    return PositionMap(
        grid=grid,
        num_images=norms_SBN.shape[1],
        shares=tuple(tuple(_rounded(row)) for row in shares_SN),
        ratios=tuple(tuple(_rounded(row)) for row in ratios_SN),
        fixed=tuple(fixed),
    )


def _begins(excess_S: Tensor, is_fixed_S: Tensor) -> int:
    """The first stage with half of the excess that the first fixed stage has."""
    first = int(is_fixed_S.int().argmax())
    return int((excess_S >= _BEGUN * excess_S[first])[: first + 1].int().argmax())


def _excess(norms: Tensor) -> Tensor:
    """Log of norm over median, along the last axis."""
    logs = norms.double().clamp_min(1e-12).log()
    return logs - logs.median(-1, keepdim=True).values


def _stands_out(excess: Tensor, settings: PositionConfig) -> Tensor:
    deviation = 1.4826 * excess.abs().median(-1, keepdim=True).values
    return excess >= (settings.min_deviations * deviation).clamp_min(math.log(settings.min_ratio))


def _spike(rows_ND: Tensor, index: int, grid: tuple[int, int]) -> TableSpike:
    squares_D = rows_ND[index].square()
    channel = int(squares_D.argmax())
    share = float(squares_D[channel] / squares_D.sum())
    return TableSpike(*divmod(index, grid[1]), float(rows_ND[index].norm()), channel, share)


def _rounded(values: Tensor) -> list[float]:
    return [round(value, _DIGITS) for value in values.tolist()]
