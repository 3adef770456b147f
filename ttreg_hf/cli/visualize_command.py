"""`ttreg visualize`: pictures of an image before and after."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ttreg_hf.cli import options
from ttreg_hf.cli.inputs import calibration_of, model_source, open_model, read_calibration
from ttreg_hf.cli.printer import Printer, is_first_rank
from ttreg_hf.known.known_checkpoint import PUBLISHED
from ttreg_hf.pictures.numbers import what_is_moved


def visualize(
    model: options.Model,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files.", show_default=False)],
    model_options: options.ModelOptions,
    output: Annotated[Path, typer.Option("--output", metavar="DIR", help="Folder for the pictures.")] = Path(
        "ttreg-pictures"
    ),
    neuron: Annotated[
        str | None, typer.Option("--neuron", metavar="LAYER/INDEX", help="Show this neuron too, such as 17/884.")
    ] = None,
    calibration: options.Calibration = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """One picture per IMAGE: photo, patch norms, attention and feature colours; before and after, where that is known.

    After is: a patched MODEL as it is, else MODEL with the neurons of `--calibration`, else with the published ones.
    Of any other MODEL one row is drawn.
    """
    from ttreg_hf.pictures.picture_files import check_images, picture_paths, write_before_after
    from ttreg_hf.pictures.visualization import detection_of, patched_form

    printer = Printer(json)
    shown_neuron = None if neuron is None else _parse_neuron(neuron)
    _check_pictures(picture_paths(images, output), overwrite)
    check_images(images)
    given = None if calibration is None else read_calibration(calibration)
    source = model_source(model, model_options)
    loaded, processor = open_model(source)
    patched = patched_form(loaded, given)
    result = given or calibration_of(loaded, source)
    measured = None if result is not None and result.on_other_weights else result
    detection_layer, norm_threshold = detection_of(loaded, measured)
    if not is_first_rank():
        return
    pictures = write_before_after(
        loaded,
        patched,
        images,
        processor,
        output,
        detection_layer=detection_layer,
        norm_threshold=norm_threshold,
        neuron=shown_neuron,
        caption=_caption(model, patched, calibration, is_own=patched is loaded),
    )
    if patched is None:
        printer.note(f"note: no register neurons of {model} are known; `ttreg calibrate` finds them")
    for picture in pictures:
        printer.say(f"wrote {picture}")
    printer.result({"model": model, "images": images, "pictures": pictures})


def _parse_neuron(text: str) -> tuple[int, int]:
    layer, separator, index = text.partition("/")
    if not (separator and layer.isdecimal() and index.isdecimal()):
        raise typer.BadParameter(f"a neuron is LAYER/INDEX, such as 17/884, got {text!r}.", param_hint="--neuron")
    return int(layer), int(index)


def _check_pictures(paths: list[Path], overwrite: bool) -> None:
    """Other files may lie in the folder; a picture is replaced only if that was asked for.

    Raises:
        FileExistsError: a picture is there.
        PermissionError: the folder cannot be written to.
    """
    from ttreg_hf.writing import check_writable

    check_writable(paths[0].parent)
    there = [str(path) for path in paths if path.exists()]
    if there and not overwrite:
        raise FileExistsError(f"{there[0]} exists. Give another `--output`, or `--overwrite` to replace it.")


def _caption(model: str, patched: Any, calibration: Path | None, *, is_own: bool) -> str:
    if patched is None:
        return f"{model}, as it is"
    moved = what_is_moved(patched.config.register_neurons, patched.config.fixed_positions)
    source = "its own" if is_own else PUBLISHED if calibration is None else f"of {calibration}"
    return f"{model}, {moved} ({source})"
