"""What a report of norms says, in words, by the one rule that its tables and its JSON follow too."""

from ttreg_hf.calibration.verdict import MIN_CLEAN, largest_share
from ttreg_hf.measuring.norms import NormReport
from ttreg_hf.pictures.numbers import counted


def in_words(norms: NormReport, *, is_given: bool) -> list[str]:
    """What the table shows, by the rule that marks its rows.

    Args:
        norms: what was found.
        is_given: whether the threshold is one that was asked for.
    """
    block, photographs = norms.detection_layer, counted(norms.num_photographs, "photograph")
    lines = []
    if is_given or norms.separation[block]:
        origin = "as given" if is_given else "between two populations of norms"
        lines.append(f"threshold {norms.norm_threshold:.1f} at block {block} ({origin})")
    if norms.fixed_position_share:
        lines.append(f"{norms.fixed_position_share:.0%} of what exceeds it is at the same places in every image.")
    if norms.content_share:
        lines.append(f"{norms.content_share:.0%} of what exceeds it was as extreme before the first block: content.")
    largest = f"the largest norm is {norms.largest_ratio:.1f} times the median"
    if norms.shows_outliers:
        return [
            *lines,
            f"{norms.photographs_with_outliers} of {photographs} have outlier tokens there; {largest}. Attention goes "
            "to such tokens instead of the image.",
        ]
    if norms.images_with_outliers:
        return [
            *lines,
            f"{norms.photographs_with_outliers} of {photographs} exceed it, but {largest}: that is an "
            "ordinary spread, not outlier tokens.",
        ]
    no = "no others" if norms.fixed_position_share else "no outlier tokens"
    found = f"N{no[1:]} seen" if is_given else f"The norms of block {block} show {no}"
    lines.append(f"{found} in {photographs}; {largest}.")
    bound = 100 * largest_share(norms.num_photographs)
    lines.append(
        f"At 95 %, fewer than {bound:.1f} % of such photographs have one; low-norm artifacts are not excluded."
    )
    return lines


def next_step(norms: NormReport, model: str) -> str:
    """What to do now; `model` as it was named on the command line."""
    if norms.shows_outliers or norms.fixed_position_share:
        fixed = "  # what makes those at the same places is looked for too" if norms.fixed_position_share else ""
        return f"ttreg calibrate {model} --output CALIBRATION{fixed}"
    if norms.num_photographs < MIN_CLEAN:
        return f"look at {MIN_CLEAN} photographs or more (`--dataset`, `--num-images`): so few may miss outliers."
    return "nothing to do."
