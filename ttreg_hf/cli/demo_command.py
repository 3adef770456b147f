"""`ttreg demo`: the neuron switch on one's own pictures, as a page, live in a browser, and as a Space."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ttreg_hf.cli import options
from ttreg_hf.cli.demo_options import LiveOptions, SpaceOptions
from ttreg_hf.cli.inputs import calibration_of, model_source, open_model, read_calibration
from ttreg_hf.cli.printer import Printer, is_first_rank
from ttreg_hf.cli.progress import progress_bars

if TYPE_CHECKING:
    from ttreg_hf.calibration.calibration_result import CalibrationResult
    from ttreg_hf.demonstration.space import Space
    from ttreg_hf.demonstration.subject import Subject
    from ttreg_hf.loading import ModelSource

_FOLDER = Path("ttreg-demo")


def demo(
    model: options.Model,
    model_options: options.ModelOptions,
    space_options: SpaceOptions,
    live_options: LiveOptions,
    images: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[IMAGE...]", help="Image files. Default: bundled photographs.", show_default=False),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="DIR", help=f"Folder for the page. Default: {_FOLDER}.")
    ] = None,
    calibration: options.Calibration = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """One page with the neuron switch on your pictures: it needs no server, and loads nothing from elsewhere.

    The neurons are: those of `--calibration`, else a patched MODEL's own, else the published ones. Of any other MODEL
    the page shows the base model alone. `--live` takes pictures in a browser instead. `--space` publishes either.
    """
    space_options.check()
    live_options.check(
        is_space=space_options.space is not None,
        others={"IMAGE": images, "--output": output, "--overwrite": overwrite},
    )
    if live_options.live:
        _live(model, model_options, space_options, live_options, calibration, Printer(json))
        return
    from ttreg_hf.demonstration.demo import show
    from ttreg_hf.demonstration.space import static_space
    from ttreg_hf.images.photographs import photographs_to_picture
    from ttreg_hf.modeling.modeling_ttreg import TTRegModelMixin
    from ttreg_hf.pictures.picture_files import check_images
    from ttreg_hf.writing import check_output

    printer = Printer(json)
    pictures, output = images or photographs_to_picture(), output or _FOLDER
    check_output(output, overwrite=overwrite)
    check_images(pictures)
    given = None if calibration is None else read_calibration(calibration)
    subject = _opened(model_source(model, model_options), given)
    if not is_first_rank():
        return
    with progress_bars(len(pictures)) as progress:
        made = show(subject, pictures, progress=progress)
    page = made.save(output, overwrite=overwrite)
    printer.say(f"wrote {page}")
    if len(made.switch.states) == 1:
        printer.note(f"note: no register neurons of {model} are known; `ttreg calibrate` finds them")
    published = None
    if space_options.space is not None:
        published = _publish(static_space(made), space_options, model_options.token, printer)
        if published["commit"] is not None:
            printer.note("note: the pictures on the page can be seen by whoever may see the Space")
            if isinstance(subject.model, TTRegModelMixin) and Path(model).is_dir():
                _link(Path(model), space_options.space, printer)
    printer.result({"model": model, "images": pictures, "page": page, "space": published})


def _live(
    model: str,
    model_options: options.ModelOptions,
    space_options: SpaceOptions,
    live_options: LiveOptions,
    calibration: Path | None,
    printer: Printer,
) -> None:
    """Serve the live page, or publish it."""
    from ttreg_hf.demonstration.live import gradio_version, serve_live
    from ttreg_hf.demonstration.live_space import live_space

    gradio_version()  # an error before the model is loaded, if there is none
    given = None if calibration is None else read_calibration(calibration)
    source = model_source(model, model_options)
    subject = _opened(source, given)
    if not is_first_rank():
        return
    if space_options.space is None:
        serve_live(subject, port=live_options.port, share=live_options.share, say=printer.note)
        return
    space = live_space(
        subject.model, model, commit=source.commit(), calibration=given, options=_of_loading(model_options)
    )
    published = _publish(space, space_options, model_options.token, printer)
    printer.result({"model": model, "space": published})


def _opened(source: "ModelSource", given: "CalibrationResult | None") -> "Subject":
    """The model, by the calibration that was given, else by the one beside it."""
    from ttreg_hf.demonstration.subject import Subject

    loaded, processor = open_model(source)
    beside = None if given is not None else calibration_of(loaded, source)
    return Subject.open(loaded, given, calibration=beside, processor=processor, name=source.name_or_path)


def _of_loading(model_options: options.ModelOptions) -> list[str]:
    """What a Space must be told to load the model likewise; of devices it has its own."""
    told = {"--dtype": model_options.dtype and model_options.dtype.value, "--tower": model_options.tower}
    given = [part for name, value in told.items() if value for part in (name, value)]
    return [*given, *(["--trust-remote-code"] if model_options.trust_remote_code else [])]


def _publish(space: "Space", space_options: SpaceOptions, token: str | None, printer: Printer) -> dict[str, Any]:
    """Publish a Space, or show what would be."""
    from ttreg_hf.demonstration.space import publish_space

    repo_id = str(space_options.space)
    published, card = publish_space(
        space, repo_id, private=space_options.private, dry_run=space_options.dry_run, token=token
    )
    for name, size in published.sizes.items():
        printer.say(f"{size:>14,}  {name}")
    told: dict[str, Any] = {"repo_id": repo_id, "files": dict(published.sizes), "commit": None}
    if published.commit is None:
        printer.say(f"dry run: nothing was sent to {repo_id}. Its card:\n\n{card}")
        return told
    printer.say(f"{'published' if published.changed else 'unchanged'}  {published.commit.commit_url}")
    return told | {"commit": published.commit.oid}


def _link(folder: Path, space: str, printer: Printer) -> None:
    """Link the Space on the card of a checkpoint folder."""
    from ttreg_hf.publishing.card_in_folder import add_space

    for file in add_space(folder, space):
        printer.say(f"wrote {file}, for the link to the Space")
