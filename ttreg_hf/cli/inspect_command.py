"""`ttreg inspect`: has this model outlier tokens?"""

import dataclasses
from typing import TYPE_CHECKING

from ttreg_hf.cli import options
from ttreg_hf.cli.inputs import model_source, open_images, open_model, settings_of
from ttreg_hf.cli.printer import Printer, new_table
from ttreg_hf.cli.progress import progress_bars
from ttreg_hf.pictures.numbers import percent

if TYPE_CHECKING:
    from rich.table import Table

    from ttreg_hf.measuring.norms import NormReport

_NUM_IMAGES = 100


def inspect(
    model: options.Model,
    image_options: options.ImageOptions,
    detection: options.DetectionOptions,
    model_options: options.ModelOptions,
    json: options.Json = False,
) -> None:
    """Norms of the patch tokens per block, and whether some are outliers. Changes nothing.

    Looks at 100 images by default.
    """
    printer = Printer(json)
    config = settings_of(detection, num_images=image_options.num_images or _NUM_IMAGES)
    images = open_images(image_options, token=model_options.token, model=model, num_images=config.num_images)
    images.describe(printer, config.num_images)
    loaded, processor = open_model(model_source(model, model_options))

    from ttreg_hf.calibration.calibration_run import inspect_norms

    with progress_bars(images.available) as progress:
        norms = inspect_norms(
            loaded, images.named, config=config, processor=processor, progress=progress, say=printer.note
        )
    printer.show(norm_table(norms))
    for line in _in_words(norms, model, automatic=detection.norm_threshold is None):
        printer.say(line)
    printer.result({"model": model, "images": str(images.named.source), **dataclasses.asdict(norms)})


def norm_table(norms: "NormReport") -> "Table":
    """One row a block."""
    table = new_table("block", "median", "p99.9", "max", "outliers", "", left=("",))
    rows = zip(norms.median, norms.p999, norms.max, norms.outlier_fraction, strict=True)
    for block, (median, p999, largest, fraction) in enumerate(rows):
        marks = []
        if block == norms.detection_layer:
            marks.append("detection block")
        if block == norms.first_outlier_layer:
            marks.append("outliers begin")
        cells = (str(block), f"{median:.1f}", f"{p999:.1f}", f"{largest:.1f}", percent(fraction), ", ".join(marks))
        table.add_row(*cells, style="bold" if block == norms.detection_layer else None)
    return table


def _in_words(norms: "NormReport", model: str, *, automatic: bool) -> list[str]:
    block = norms.detection_layer
    if automatic and not norms.separation[block]:
        return [
            f"The norms of block {block} are one population in {norms.num_images} images: no outlier tokens seen, "
            "nothing to do.",
            "A few images cannot show a second one; more can, and `--norm-threshold` looks with a threshold of yours.",
        ]
    origin = "between two populations of norms" if automatic else "as given"
    lines = [f"threshold {norms.norm_threshold:.1f} at block {block} ({origin})"]
    if norms.fixed_position_share:
        lines.append(f"{norms.fixed_position_share:.0%} of what exceeds it is at the same places in every image.")
    if norms.content_share:
        lines.append(f"{norms.content_share:.0%} of what exceeds it was as extreme before the first block: content.")
    if norms.images_with_outliers == 0:
        return [
            *lines,
            f"No patch norm exceeds it in {norms.num_images} images: no outlier tokens seen, nothing to do.",
        ]
    ratio = norms.max[block] / norms.median[block] if norms.median[block] else float("inf")
    return [
        *lines,
        f"{round(norms.images_with_outliers * norms.num_images)} of {norms.num_images} images have outlier tokens "
        f"there; the largest norm is {ratio:.1f} times the median.",
        "Attention goes to such tokens instead of the image; a few times the median or less is an ordinary spread.",
        f"Next: ttreg calibrate {model} --output CALIBRATION",
    ]
