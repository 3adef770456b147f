"""`ttreg inspect`: has this model outlier tokens?"""

import dataclasses
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ttreg_hf.cli import options
from ttreg_hf.cli.inputs import model_source, open_images, open_model, settings_of
from ttreg_hf.cli.printer import Printer, is_first_rank, new_table
from ttreg_hf.cli.progress import progress_bars
from ttreg_hf.pictures.numbers import percent

if TYPE_CHECKING:
    from rich.table import Table

    from ttreg_hf.measuring.norms import NormReport

OutputFolder = Annotated[
    Path | None, typer.Option("--output", metavar="DIR", help="Folder for norms.json and the pictures.")
]


def inspect(
    model: options.Model,
    image_options: options.ImageOptions,
    detection: options.DetectionOptions,
    model_options: options.ModelOptions,
    output: OutputFolder = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Norms of the patch tokens per block, and whether some are outliers. Changes nothing."""
    from ttreg_hf.writing import check_output

    printer = Printer(json)
    if output is not None:
        check_output(output, overwrite=overwrite)
    config = settings_of(detection, num_images=image_options.num_images)
    images = open_images(image_options, token=model_options.token, model=model, num_images=config.num_images)
    images.describe(printer, config.num_images)
    loaded, processor = open_model(model_source(model, model_options))

    from ttreg_hf.calibration.calibration_run import inspect_norms
    from ttreg_hf.calibration.config import RunConfig
    from ttreg_hf.report.norm_words import in_words, next_step
    from ttreg_hf.report.position_words import position_words

    with progress_bars(images.available) as progress:
        norms = inspect_norms(
            loaded,
            images.named,
            config=config,
            processor=processor,
            run=RunConfig(max_bad_share=image_options.max_bad_images),
            progress=progress,
            say=printer.note,
        )
    if not is_first_rank():
        return
    files = [] if output is None else _write(norms, model, output, overwrite=overwrite)
    printer.show(norm_table(norms))
    is_given = detection.norm_threshold is not None
    for line in [*in_words(norms, is_given=is_given), *position_words(norms.positions)]:
        printer.say(line)
    for file in files:
        printer.say(f"wrote {file}")
    following = next_step(norms, model)
    printer.say(f"Next: {following}")
    said = {"shows_outliers": norms.shows_outliers, "next": following}
    fields = {"model": model, "images": str(images.named.source), **dataclasses.asdict(norms), **said}
    printer.result(fields | ({"files": files} if files else {}))


def _write(norms: "NormReport", model: str, output: Path, *, overwrite: bool) -> list[Path]:
    """The report as JSON, and its pictures."""
    from ttreg_hf.pictures.figures import save_figure
    from ttreg_hf.pictures.norm_plots import plot_norms, plot_populations
    from ttreg_hf.pictures.position_plots import plot_positions
    from ttreg_hf.writing import whole_directory

    with whole_directory(output, overwrite=overwrite) as folder:
        text = dumps({"model": model, **dataclasses.asdict(norms)}, indent=2)
        (folder / "norms.json").write_text(f"{text}\n", encoding="utf-8")
        save_figure(plot_norms(norms), folder / "norms.png")
        save_figure(plot_populations(norms), folder / "populations.png")
        if norms.positions is not None and norms.positions.maps:
            save_figure(plot_positions(norms.positions), folder / "positions.png")
    return sorted(output.glob("[!.]*"))


def norm_table(norms: "NormReport") -> "Table":
    """One row a block."""
    table = new_table("block", "median", "p99.9", "max", "outliers", "", left=("",))
    rows = zip(norms.median, norms.p999, norms.max, norms.outlier_fraction, strict=True)
    for block, (median, p999, largest, fraction) in enumerate(rows):
        marks = []
        if block == norms.detection_layer:
            marks.append("detection block")
        if norms.shows_outliers and block == norms.first_outlier_layer:
            marks.append("outliers begin")
        cells = (str(block), f"{median:.1f}", f"{p999:.1f}", f"{largest:.1f}", percent(fraction), ", ".join(marks))
        table.add_row(*cells, style="bold" if block == norms.detection_layer else None)
    return table
