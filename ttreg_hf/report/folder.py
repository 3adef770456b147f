"""The report of a calibration folder: reads what `ttreg calibrate` wrote there, and writes page and figures."""

import io
from pathlib import Path

from ttreg_hf.calibration.result import CalibrationResult
from ttreg_hf.report.charts import figures_of
from ttreg_hf.report.page import render_page
from ttreg_hf.report.switch_file import load_switch
from ttreg_hf.writing import write_file

REPORT_FILE, FIGURES = "report.html", "figures"


def write_report(directory: str | Path, result: CalibrationResult | None = None) -> list[Path]:
    """Write `report.html` and its figures into a calibration folder; each file is replaced as a whole.

    It shows photographs and local paths, so it is for you: checkpoints are published without it.

    Args:
        directory: with `calibration.json` and `calibration.safetensors`; without `switch.safetensors` the page has no
            photographs.
        result: what these files hold, if it is known already.

    Returns:
        The files that were written, the page first.

    Raises:
        FileNotFoundError: no calibration is there.
        ValueError: a file of another format or version, or a checkpoint, which is published as it is.
    """
    directory = Path(directory)
    if (directory / "config.json").is_file():
        raise ValueError(
            f"A report belongs into the folder of a calibration, but {directory} is a checkpoint, which is published "
            "as it is. Give the folder that `ttreg calibrate` wrote."
        )
    result = result or CalibrationResult.load(directory)
    switch = load_switch(directory)
    pictures: dict[str, bytes] = {}
    for name, figure in figures_of(result):
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        pictures[name] = buffer.getvalue()
    page = render_page(result, switch, pictures)
    (directory / FIGURES).mkdir(exist_ok=True)
    written = [write_file(directory / REPORT_FILE, page.encode("utf-8"))]
    written += [write_file(directory / FIGURES / f"{name}.png", png) for name, png in pictures.items()]
    return written
