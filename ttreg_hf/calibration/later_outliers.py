"""Are there outliers after the detection block that the detection block does not show?

Letters: `L` blocks after the detection block.
"""

from dataclasses import replace

from ttreg_hf.calibration.config import InspectionConfig
from ttreg_hf.calibration.inspection import populations_per_block
from ttreg_hf.measuring.measurement import Measurement
from ttreg_hf.measuring.outlier_rule import Content, OutlierRule


def later_outlier_fractions(
    base: Measurement, patched: Measurement, rule: OutlierRule, settings: InspectionConfig | None = None
) -> tuple[float, ...]:
    """Share of the patched model's patches that form a second population, at each block after the detection block.

    Such a patch is above the dip between the two populations there, and as large, in units of the base model's median
    norm, as an outlier has to be at the detection block: what is pruned as too weak there is no outlier later either.

    Args:
        base: the base model on some images.
        patched: its patched twin on the same.
        rule: which tokens are outliers at the detection block, and which are not of the images' making.
        settings: when large norms are a population of their own.

    Returns:
        `(L,)`, 0 where the norms are one population; empty if the detection block is the last.
    """
    settings, detection = settings or InspectionConfig(), rule.detection_layer
    found = populations_per_block(patched.patch_norms, settings, rule.left_out)
    base_medians, medians = base.patch_norms.medians().tolist(), patched.patch_norms.medians().tolist()
    fractions = []
    for layer in range(detection + 1, len(found)):
        populations = found[layer]
        if populations is None:
            fractions.append(0.0)
            continue
        least = rule.norm_threshold * base_medians[layer + 1] / base_medians[detection + 1]
        content = Content(medians[0], medians[layer + 1], settings.content_share)
        there = replace(rule, detection_layer=layer, norm_threshold=max(populations.threshold, least), content=content)
        large = patched.patch_norms.outliers(there)
        fractions.append(sum(int(mask.sum()) for mask in large) / sum(mask.numel() for mask in large))
    return tuple(fractions)
