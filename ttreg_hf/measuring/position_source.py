"""What makes patches stand out at fixed positions: the position table, a block's attention, its MLP, or a neuron.

Letters: `S` stages, `B` images, `T` tokens, `N` patches, `F` neurons.
"""

from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ttreg_hf.known.position_table import position_table
from ttreg_hf.measuring.position_config import PositionConfig
from ttreg_hf.measuring.position_maps import table_report
from ttreg_hf.measuring.position_report import (
    TABLE,
    FixedPosition,
    PositionMap,
    PositionReport,
    PositionSource,
    stage_name,
)
from ttreg_hf.measuring.recorder import Recorder
from ttreg_hf.measuring.tower import VisionTower

_LEAST_GROWTH = 1.25  # of the ratio of norm to median, for a block to count as the one that enlarges it
_LEAST_SHARE = 0.1  # of what a block adds, for a neuron to be named
_TRIED = 4  # neurons of a block, one by one


def position_report(tower: VisionTower, maps: tuple[PositionMap, ...], images: Iterable[Tensor]) -> PositionReport:
    """The sources of what is fixed in the first map, and the block that enlarges it.

    Args:
        tower: of the base model, a private copy.
        maps: of its patches.
        images: a few batches of the first map's grid, `(B, C, H, W)`; asked for where a block is to be looked into.
    """
    rows_hwD = position_table(tower.trunk)
    table = None if rows_hwD is None else table_report(rows_hwD, PositionConfig())
    report = PositionReport(maps, table, ())
    if not report.places:
        return report
    begun = _by_stage(report)
    pixels = list(images) if any(stage for _, stage in begun) else None
    sources = [_source(tower, report, name, stage, fixed, pixels or []) for (name, stage), fixed in begun.items()]
    ordered = tuple(sorted(sources, key=lambda source: -len(source.places)))
    largest = max(range(1, tower.num_layers + 1), key=lambda stage: _growth(report, stage))
    amplifier = None
    if largest not in {stage for _, stage in begun} and _growth(report, largest) >= _LEAST_GROWTH:
        amplifier = _block_source(tower, maps[0], largest, maps[0].fixed, pixels or list(images))
    return PositionReport(maps, table, ordered, amplifier)


def _by_stage(report: PositionReport) -> dict[tuple[str, int], list[FixedPosition]]:
    """Fixed positions by the name and the number of the stage at which they begin."""
    begun: dict[tuple[str, int], list[FixedPosition]] = {}
    for position in report.maps[0].fixed:
        is_table = position.begins == 0 and report.in_table([position.place])
        name = TABLE if is_table else stage_name(position.begins)
        begun.setdefault((name, position.begins), []).append(position)
    return begun


def _growth(report: PositionReport, stage: int) -> float:
    """Of the positions that have begun before this stage, the largest; 0 if there are none."""
    return max(
        (
            position.ratios[stage] / position.ratios[stage - 1]
            for position in report.maps[0].fixed
            if position.begins < stage
        ),
        default=0.0,
    )


def _source(
    tower: VisionTower,
    report: PositionReport,
    name: str,
    stage: int,
    fixed: Sequence[FixedPosition],
    images: Sequence[Tensor],
) -> PositionSource:
    if stage:
        return _block_source(tower, report.maps[0], stage, fixed, images)
    places = tuple(position.place for position in fixed)
    growth = max(position.ratios[0] for position in fixed)
    if name != TABLE or report.table is None:
        return PositionSource(name, places, growth)
    spikes = [spike for spike in report.table.spikes if spike.place in report.in_table(places)]
    longest = spikes[0]
    return PositionSource(name, places, growth, channel=longest.channel, channel_share=longest.channel_share)


def _block_source(
    tower: VisionTower, of: PositionMap, stage: int, fixed: Sequence[FixedPosition], images: Sequence[Tensor]
) -> PositionSource:
    """A block: how much of what it adds there goes without its MLP, and without single neurons of it."""
    layer, places = stage - 1, tuple(position.place for position in fixed)
    index = torch.tensor([row * of.grid[1] + column for row, column in places])
    before, whole = _ratios(tower, layer, index, [], images)

    def share(neurons: Sequence[int]) -> float:
        _, left = _ratios(tower, layer, index, neurons, images)
        return min(max((whole - left) / (whole - before), 0.0), 1.0)

    if whole <= before:
        return PositionSource(stage_name(stage), places, whole / before)
    tried = {neuron: share([neuron]) for neuron in _likely_neurons(tower, layer, index, images)}
    best = max(tried, key=lambda neuron: tried[neuron])
    found = PositionSource(stage_name(stage), places, whole / before, mlp_share=share(range(tower.widths[layer])))
    return replace(found, neuron=best, neuron_share=tried[best]) if tried[best] >= _LEAST_SHARE else found


def _ratios(
    tower: VisionTower, layer: int, index: Tensor, neurons: Sequence[int], images: Iterable[Tensor]
) -> tuple[float, float]:
    """Norm over median before and after a block at these places, where some neurons treat them as the others."""
    logs, norm_layers = [], [layer - 1, layer] if layer else [layer]
    with (
        _treated_alike(tower, layer, index, neurons),
        Recorder(tower, norm_layers=norm_layers, stop_after=layer) as recorder,
    ):
        for pixel_values in images:
            recording = recorder(pixel_values)
            pair_2BT = torch.stack([recording.embedding_norms_BT, recording.norms_LBT[0]])
            norms_2BN = (recording.norms_LBT if layer else pair_2BT)[:, :, tower.layout.patches].double().cpu()
            logs.append((norms_2BN[:, :, index] / norms_2BN.median(2, keepdim=True).values).log().flatten(1))
    before, after = torch.cat(logs, dim=1).mean(1).exp().tolist()
    return before, after


@contextmanager
def _treated_alike(tower: VisionTower, layer: int, index: Tensor, neurons: Sequence[int]) -> Generator[None]:
    """Within the block, neurons have the mean activation of all other patches at these places."""

    def change(module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        acts_BTF = args[0].clone()
        patches_BNF = acts_BTF[:, tower.layout.patches]
        others_BF = patches_BNF[:, _others(index, patches_BNF.shape[1])].mean(1)
        columns = torch.tensor(list(neurons), dtype=torch.long, device=acts_BTF.device)
        patches_BNF[:, index.to(acts_BTF.device)[:, None], columns] = others_BF[:, None, columns]
        return (acts_BTF, *args[1:])

    handle = tower.down_projections[layer].register_forward_pre_hook(change)
    try:
        yield
    finally:
        handle.remove()


def _likely_neurons(tower: VisionTower, layer: int, index: Tensor, images: Iterable[Tensor]) -> list[int]:
    """Those whose activation at these places, times the length of what they write, differs most from elsewhere."""
    differences = []
    with torch.no_grad(), Recorder(tower, [layer], norm_layers=[], stop_after=layer) as record:
        for pixel_values in images:
            acts_BNF = record(pixel_values).acts_by_layer[layer][:, tower.layout.patches].float()
            others_BF = acts_BNF[:, _others(index, acts_BNF.shape[1])].mean(1)
            differences.append(acts_BNF[:, index.to(acts_BNF.device)].mean(1) - others_BF)
    lengths_F = tower.down_projections[layer].weight.detach().float().norm(dim=0)
    written_F = torch.cat(differences).mean(0).abs() * lengths_F
    return written_F.topk(min(_TRIED, len(written_F))).indices.tolist()


def _others(index: Tensor, count: int) -> Tensor:
    """The places that are not among these."""
    is_other = torch.ones(count, dtype=torch.bool)
    is_other[index] = False
    return is_other.nonzero().flatten()
