"""Constant mode beside the token, as a table and in words: for the terminal, the report and the model card."""

from ttreg_hf.calibration.constant_mode import (
    CONSTANT,
    MEAN_PATCH,
    RANDOM,
    SHUFFLED,
    TOKEN,
    ZEROED,
    ConstantMode,
)
from ttreg_hf.pictures.numbers import counted
from ttreg_hf.report.table import Table

_NAMES = {
    TOKEN: "token mode: the register is a token",
    CONSTANT: "constant mode: one row a block, the same for every image",
    ZEROED: "neurons zeroed, no row",
    RANDOM: "random rows of the same norms",
    MEAN_PATCH: "rows of the mean patch",
    SHUFFLED: "token, each attention reads another image's register",
}


def constant_table(found: ConstantMode) -> Table:
    """What each way does to outliers and features, on the images that verified."""
    rows = tuple(
        (name, f"{effect.outlier_ratio:.4f}", f"{effect.drift.pooled:.2g}", f"{effect.drift.patches:.2g}")
        for name, effect in ((_NAMES[key], effect) for key, effect in found.effects.items())
    )
    return Table(("constant mode", "outliers after / before", "drift, pooled", "drift, ordinary patches"), rows)


def constant_words(found: ConstantMode) -> list[str]:
    """Where the rows come from, and whether they may be published."""
    lowest = min(found.agreement, default=1.0)
    lines = [
        f"Constant mode: rows from block {found.first_layer} on, means over {counted(found.num_images, 'image')}; "
        f"the rows of two halves of them agree (cosine {lowest:.4f} or more)."
    ]
    if found.passed:
        lines.append("Its conditions hold: `ttreg apply --mode constant` makes a checkpoint without an extra token.")
    else:
        lines += [f"Constant mode is not advised: {reason}" for reason in found.reasons]
    return lines
