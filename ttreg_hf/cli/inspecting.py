"""`ttreg inspect`: has this model outlier tokens?"""

import dataclasses
from typing import TYPE_CHECKING

from rich.table import Table

from ttreg_hf.cli import options
from ttreg_hf.cli.opening import open_images, open_model, settings_of
from ttreg_hf.cli.printing import Printer, new_table, percent, progress_bars

if TYPE_CHECKING:
    from ttreg_hf.calibration.norms import NormReport

_NUM_IMAGES = 100


def inspect(
    model: options.Model,
    dataset: options.Dataset = None,
    split: options.Split = None,
    image_column: options.ImageColumn = None,
    num_images: options.NumImages = _NUM_IMAGES,
    batch_size: options.BatchSize = None,
    norm_threshold: options.NormThreshold = None,
    detection_layer: options.DetectionLayer = None,
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    token: options.Token = None,
    device: options.Device = None,
    dtype: options.DtypeOption = None,
    json: options.Json = False,
) -> None:
    """Norms of the patch tokens per block, and whether some are outliers. Changes nothing."""
    printer = Printer(json)
    config = settings_of(
        {
            "num_images": num_images,
            "batch_size": batch_size,
            "norm_threshold": norm_threshold,
            "detection_layer": detection_layer,
        }
    )
    images = open_images(
        dataset, split=split, image_column=image_column, token=token, model=model, num_images=config.num_images
    )
    images.tell(printer, config.num_images)
    loaded, processor = open_model(
        model, revision=revision, trust_remote_code=trust_remote_code, token=token, device=device, dtype=dtype
    )

    from ttreg_hf.calibration.driver import inspect_norms

    with progress_bars(images.available) as progress:
        norms = inspect_norms(
            loaded,
            images.images,
            config=config,
            processor=processor,
            image_column=images.image_column,
            progress=progress,
            say=printer.note,
        )
    printer.show(norm_table(norms))
    for line in _in_words(norms, model, automatic=norm_threshold is None):
        printer.say(line)
    printer.result({"model": model, "images": images.name, **dataclasses.asdict(norms)})


def norm_table(norms: "NormReport") -> Table:
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
