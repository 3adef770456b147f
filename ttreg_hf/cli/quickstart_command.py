"""`ttreg quickstart`: the whole chain, offline."""

from pathlib import Path
from typing import Annotated

import typer

from ttreg_hf.cli import options
from ttreg_hf.cli.printer import Printer, is_first_rank, say_working
from ttreg_hf.cli.progress import progress_bars


def quickstart(
    output: Annotated[Path, typer.Option("--output", metavar="DIR", help="Folder to write.")] = Path(
        "ttreg-quickstart"
    ),
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """The whole chain on a bundled toy ViT and photographs, offline: inspect, calibrate, apply, save, load, draw."""
    from ttreg_hf.writing import check_output

    if not is_first_rank():
        return
    printer = Printer(json)
    check_output(output, overwrite=overwrite)
    say_working("loading torch and transformers ...")
    from ttreg_hf.quickstart import run_quickstart

    with progress_bars() as progress:
        printer.result(run_quickstart(output, overwrite=overwrite, say=printer.say, progress=progress))
