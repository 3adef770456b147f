"""First stage: are there outlier tokens, where do they show, where do they begin, and what sort are they?

Letters: `L` blocks, `B` images, `N` patches, `K` tokens above the threshold.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ttreg_hf.calibration.config import CalibrationConfig, InspectionConfig
from ttreg_hf.calibration.verdict import Look
from ttreg_hf.images.batches import Batch
from ttreg_hf.images.processes import Processes
from ttreg_hf.measuring.batch_limit import BatchLimit
from ttreg_hf.measuring.norms import NormReport, NormStatistics, OutlierCounts, norm_report, paper_threshold
from ttreg_hf.measuring.outlier_rule import Content, OutlierRule
from ttreg_hf.measuring.patch_norms import PatchNorms
from ttreg_hf.measuring.photographs import PhotographOf, own_photograph, photograph_keys
from ttreg_hf.measuring.populations import Populations, two_populations
from ttreg_hf.measuring.position_maps import position_maps
from ttreg_hf.measuring.position_report import PositionMap
from ttreg_hf.measuring.recorder import Recorder
from ttreg_hf.measuring.tower import VisionTower

MOST_IMAGES_KEPT = 256
"""Images whose norms are kept patch by patch, over all processes."""


def norms_of(
    tower: VisionTower,
    batches: Iterable[Batch],
    processes: Processes,
    limit: BatchLimit,
    photograph_of: PhotographOf = own_photograph,
) -> tuple[NormStatistics, PatchNorms]:
    """Norms of all patch tokens at every block, of all processes' images; those of the first images one by one."""
    layout = tower.layout
    statistics, patch_norms = NormStatistics(tower.num_layers, tower.trunk.device), PatchNorms()
    with Recorder(tower) as recorder:
        for batch in batches:
            kept = batch.only([row for row, place in enumerate(batch.places) if place < MOST_IMAGES_KEPT])
            keys = photograph_keys(kept, photograph_of)
            for _, recording in limit.record(recorder, batch):
                norms_LBN = recording.norms_LBT[:, :, layout.patches]
                statistics.add(norms_LBN)
                part, keys = keys[: norms_LBN.shape[1]], keys[norms_LBN.shape[1] :]
                if first := len(part):
                    embedding_norms_BN = recording.embedding_norms_BT[:first, layout.patches]
                    patch_norms.add(embedding_norms_BN, norms_LBN[:, :first], part, recording.grid)
    statistics.merge_processes(processes)
    patch_norms.merge_processes(processes)
    return statistics, patch_norms


@dataclass(frozen=True)
class Inspection:
    """What the first images show.

    Args:
        report: of the norms.
        rule: which tokens are outliers.
        first_layer: first block in which one begins; `None` if there is none.
        last_layer: last block in which one arrives; `None` if there is none.
        has_hint: whether the norms look as if there were some, and more images could show it.
        maps: by place, of each grid of which there are enough images.
    """

    report: NormReport
    rule: OutlierRule
    first_layer: int | None
    last_layer: int | None
    has_hint: bool = False
    maps: tuple[PositionMap, ...] = ()

    @property
    def has_outliers(self) -> bool:
        return self.first_layer is not None


def look_of(inspection: Inspection, image_size: tuple[int, int]) -> Look:
    """What a verdict keeps of an inspection."""
    report = inspection.report
    return Look(
        image_size,
        report.num_photographs,
        report.photographs_with_outliers,
        report.fixed_position_share,
        inspection.has_hint,
    )


def inspect(
    statistics: NormStatistics,
    patch_norms: PatchNorms,
    config: CalibrationConfig,
    *,
    default_layer: int,
    rule: OutlierRule | None = None,
    settings: InspectionConfig | None = None,
) -> Inspection:
    """What these norms show.

    Args:
        statistics: of all images that were looked at.
        patch_norms: of the first of them.
        config: what is given; `detection_layer` is 0-based.
        default_layer: the family's detection block.
        rule: which tokens are outliers, if an earlier round has said so.
        settings: of the automatic choices.
    """
    settings = settings or InspectionConfig()
    grids = patch_norms.by_grid()
    maps = position_maps(grids, settings.positions)
    fixed_places = [row * each.grid[1] + column for each in maps for row, column in each.places]
    per_block = populations_per_block(patch_norms, settings, no_content=fixed_places if len(grids) == 1 else ())
    if rule is None:
        layer = _detection_layer(config, per_block, default_layer, settings)
        fixed = _standing_out(maps, layer + 1, settings) if len(grids) == 1 else set()
        rule = _rule(layer, per_block[layer], statistics, patch_norms, config, settings, fixed)
    layer = rule.detection_layer
    separation = tuple(0.0 if block is None else block.separation for block in per_block)
    above = patch_norms.above(layer, rule.norm_threshold)
    kept = patch_norms.outliers(rule)
    total, remaining = _count(above), _count(kept)
    fixed = _count([mask_BN[:, list(rule.left_out)] for mask_BN in above])
    first, last = _begin_and_end(patch_norms, kept, layer, settings) if remaining else (None, None)
    counts = OutlierCounts(
        num_photographs=len(set(patch_norms.photographs)),
        photographs_with_outliers=patch_norms.photographs_with(kept),
        fraction_L=_fractions(patch_norms, kept, layer, settings),
        first_layer=first,
    )
    report = norm_report(
        statistics,
        layer,
        rule.norm_threshold,
        counts,
        separation=separation,
        fixed_position_share=fixed / max(total, 1),
        content_share=(total - fixed - remaining) / max(total, 1),
    )
    has_hint = not remaining and config.norm_threshold is None and _has_hint(patch_norms, settings, rule)
    return Inspection(report, rule, first, last, has_hint, maps)


def populations_per_block(
    patch_norms: PatchNorms,
    settings: InspectionConfig,
    fixed_positions: Sequence[int] = (),
    no_content: Sequence[int] = (),
) -> list[Populations | None]:
    """The two populations at every block, content and fixed positions apart; `None` where there is one.

    Args:
        patch_norms: of some images.
        settings: when there are two.
        fixed_positions: patches that are left out.
        no_content: patches that are no content, however extreme they were before the first block.
    """
    histogram = patch_norms.histogram_without_content(
        content_share=settings.content_share,
        min_ratio=settings.populations.min_ratio,
        fixed_positions=fixed_positions,
        no_content=no_content,
    )
    return [two_populations(counts_G, settings.populations) for counts_G in histogram.counts_LG]


def _has_hint(patch_norms: PatchNorms, settings: InspectionConfig, rule: OutlierRule) -> bool:
    """Whether a dip in the norms of some block is deep, though not enough to show two populations.

    What lies at fixed positions, and is known, hints at nothing else.
    """
    if patch_norms.num_images >= MOST_IMAGES_KEPT:
        return False
    easier = replace(settings, populations=replace(settings.populations, min_evidence=settings.hint_evidence))
    return any(block is not None for block in populations_per_block(patch_norms, easier, rule.left_out))


def _detection_layer(
    config: CalibrationConfig, per_block: Sequence[Populations | None], default: int, settings: InspectionConfig
) -> int:
    """As given; else the family's default, unless it separates outliers much worse than the best block.

    Then it is the last block that does not: an outlier is written on after it can be told, and a later block has seen
    more of that. A block that shows far fewer outliers than the default, or than any, does not count.
    """
    if config.detection_layer is not None:
        return config.detection_layer
    shares = [0.0 if block is None else block.share for block in per_block]
    least = settings.block_tolerance * (shares[default] or max(shares))
    separations = [0.0 if block is None or block.share < least else block.separation for block in per_block]
    clear = [
        layer
        for layer, separation in enumerate(separations)
        if separation >= settings.block_tolerance * max(separations)
    ]
    return default if default in clear else clear[-1]


def _rule(
    layer: int,
    found: Populations | None,
    statistics: NormStatistics,
    patch_norms: PatchNorms,
    config: CalibrationConfig,
    settings: InspectionConfig,
    standing_out: set[int],
) -> OutlierRule:
    """With the threshold that is given, and no exceptions; else with the dip between the two populations.

    Fixed are the places above it in nearly every image, and those that stand out in nearly every image at this block.
    """
    if config.norm_threshold is not None:
        return OutlierRule(layer, config.norm_threshold, config.detect_on_prefix)
    if found is None:  # one population: its own largest norm is no outlier
        threshold = max(paper_threshold(statistics, layer), float(statistics.max_L[layer]))
        return OutlierRule(layer, threshold, config.detect_on_prefix)
    medians = patch_norms.medians()
    above = patch_norms.above(layer, found.threshold)
    fixed: tuple[int, ...] = ()
    if patch_norms.num_images >= settings.positions.min_images and len(patch_norms.by_grid()) == 1:
        share_N = torch.cat(above).float().mean(0)
        above_always = (share_N >= settings.positions.fixed_share).nonzero().flatten().tolist()
        fixed = tuple(sorted({*above_always, *(place for place in standing_out if share_N[place] > 0)}))
    content = Content(float(medians[0]), float(medians[layer + 1]), settings.content_share)
    return OutlierRule(layer, found.threshold, config.detect_on_prefix, fixed, content)


def _standing_out(maps: Sequence[PositionMap], stage: int, settings: InspectionConfig) -> set[int]:
    """Places that stand out in nearly every image at a stage, of all maps."""
    return {
        place
        for each in maps
        for place, share in enumerate(each.shares[stage])
        if share >= settings.positions.fixed_share
    }


def _count(masks: Sequence[Tensor]) -> int:
    return sum(int(mask.sum()) for mask in masks)


def _fractions(
    patch_norms: PatchNorms, outliers: Sequence[Tensor], layer: int, settings: InspectionConfig
) -> tuple[float, ...]:
    """At each block, the share of all patches that are outliers, and are on their way there or still are some."""
    excess_LK = _excess(patch_norms, outliers)
    is_one_LK = excess_LK >= settings.begin_share * excess_LK[layer]
    is_one_LK[layer] = True
    num_patches = sum(mask.numel() for mask in outliers)
    return tuple((is_one_LK.double().sum(1) / max(num_patches, 1)).tolist())


def _excess(patch_norms: PatchNorms, outliers: Sequence[Tensor]) -> Tensor:
    """`(L, K)`: log of norm over median of the outliers after each block."""
    return (patch_norms.tokens(outliers)[1:] / patch_norms.medians()[1:, None]).log()


def _begin_and_end(
    patch_norms: PatchNorms, outliers: Sequence[Tensor], layer: int, settings: InspectionConfig
) -> tuple[int, int]:
    """First and last block, up to the detection block, in which outliers begin and arrive."""
    excess_LK = _excess(patch_norms, outliers)[: layer + 1]
    begins_K = (excess_LK >= settings.begin_share * excess_LK[-1]).double().argmax(0)
    arrives_K = (excess_LK >= settings.end_share * excess_LK[-1]).double().argmax(0)
    rare = int(settings.rare * begins_K.numel())
    return int(begins_K.sort().values[rare]), int(arrives_K.sort(descending=True).values[rare])
