"""Tables of what was verified, for `ttreg calibrate` and `ttreg verify`."""

from typing import TYPE_CHECKING

from rich.table import Table

from ttreg_hf.cli.printing import new_table, percent

if TYPE_CHECKING:
    from ttreg_hf.calibration.verification import Verification


def verification_table(checked: "Verification", *, detection_layer: int, norm_threshold: float) -> Table:
    """Base against patched."""
    block = detection_layer
    table = new_table(f"{checked.num_images} images", "before", "after", left=(f"{checked.num_images} images",))
    table.add_row(
        f"outlier patches (block {block}, norm above {norm_threshold:.1f})",
        percent(checked.outlier_fraction_before),
        percent(checked.outlier_fraction_after),
    )
    table.add_row(
        "largest patch norm there", f"{checked.max_norm_before[block]:.1f}", f"{checked.max_norm_after[block]:.1f}"
    )
    table.add_row("feature similarity (mean cosine to the base)", "1", f"{checked.feature_similarity:.4f}")
    table.add_row("feature similarity, the lowest", "1", f"{checked.min_feature_similarity:.4f}")
    if checked.maps is not None:
        maps = checked.maps
        table.add_row("largest attention on a patch", f"{maps.largest_before:.4f}", f"{maps.largest_after:.4f}")
        table.add_row("attention on the register", "", percent(maps.on_register))
    return table


def gate_table(verification: "Verification") -> Table:
    """What the verdict rests on, with the controls beside it."""
    table = new_table(
        "gate (bounds are provisional)", "measured", "at most", "", left=("gate (bounds are provisional)",)
    )
    for check in verification.checks:
        table.add_row(check.name, f"{check.value:.4f}", f"{check.bound:.4f}", "ok" if check.passed else "NO")
    if verification.controls is not None:
        zeroed, draws = verification.controls.zeroed, verification.controls.random
        ratios = [draw.outlier_ratio for draw in draws]
        table.add_row("control, zeroed without moving: drift", f"{1 - zeroed.feature_similarity:.4f}", "", "")
        label = f"control, {len(draws)} random draws: outliers after / before, least and mean"
        table.add_row(label, f"{min(ratios):.2f}, {sum(ratios) / len(ratios):.2f}", "", "")
    return table
