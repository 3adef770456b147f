"""`ttreg report`: the page of a calibration, made again."""

from pathlib import Path
from typing import Annotated

import typer

from ttreg_hf.cli import options
from ttreg_hf.cli.inputs import read_calibration
from ttreg_hf.cli.printer import Printer, is_first_rank


def report(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of `ttreg calibrate`.", show_default=False)],
    json: options.Json = False,
) -> None:
    """Write report.html and its figures again, from what `ttreg calibrate` left in DIR. Needs no model."""
    from ttreg_hf.report.calibration_folder import write_report

    printer = Printer(json)
    if not is_first_rank():
        return
    files = write_report(directory, read_calibration(directory))
    for file in files:
        printer.say(f"wrote {file}")
    printer.result({"files": [str(file) for file in files]})
