"""`ttreg demo`: the neuron switch on one's own pictures, as a page and as a static Space."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ttreg_hf.cli import options
from ttreg_hf.cli.inputs import calibration_of, model_source, open_model, read_calibration
from ttreg_hf.cli.printer import Printer, is_first_rank
from ttreg_hf.cli.progress import progress_bars

if TYPE_CHECKING:
    from ttreg_hf.demonstration.demo import Demo

_PANEL = "Publish"


def demo(
    model: options.Model,
    model_options: options.ModelOptions,
    images: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[IMAGE...]", help="Image files. Default: bundled photographs.", show_default=False),
    ] = None,
    output: Annotated[Path, typer.Option("--output", metavar="DIR", help="Folder for the page.")] = Path("ttreg-demo"),
    calibration: options.Calibration = None,
    overwrite: options.Overwrite = False,
    space: Annotated[
        str | None,
        typer.Option(
            "--space", metavar="ORG/NAME", help="Publish the page, with its pictures, here.", rich_help_panel=_PANEL
        ),
    ] = None,
    private: Annotated[
        bool | None,
        typer.Option("--private/--public", help="Of a new Space. Default: as your account.", rich_help_panel=_PANEL),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the Space; send nothing to the Hub.", rich_help_panel=_PANEL)
    ] = False,
    json: options.Json = False,
) -> None:
    """One page with the neuron switch on your pictures: it needs no server, and loads nothing from elsewhere.

    The neurons are: those of `--calibration`, else a patched MODEL's own, else the published ones. Of any other MODEL
    the page shows the base model alone. `--space` publishes the page as a static Space.
    """
    if space is None and (dry_run or private is not None):
        raise typer.BadParameter("is about a Space: give `--space ORG/NAME`, too.", param_hint="--dry-run, --private")
    from ttreg_hf.demonstration.demo import demo as make_demo
    from ttreg_hf.images.photographs import photographs_to_picture
    from ttreg_hf.modeling.modeling_ttreg import TTRegModelMixin
    from ttreg_hf.pictures.picture_files import check_images
    from ttreg_hf.writing import check_output

    printer = Printer(json)
    pictures = images or photographs_to_picture()
    check_output(output, overwrite=overwrite)
    check_images(pictures)
    given = None if calibration is None else read_calibration(calibration)
    source = model_source(model, model_options)
    loaded, processor = open_model(source)
    if not is_first_rank():
        return
    result = given or calibration_of(loaded, source)
    measured = None if result is None or result.on_other_weights else result.norms
    with progress_bars(len(pictures)) as progress:
        made = make_demo(
            loaded,
            pictures,
            given,
            processor=processor,
            detection_layer=None if measured is None else measured.detection_layer,
            norm_threshold=None if measured is None else measured.norm_threshold,
            name=model,
            progress=progress,
        )
    page = made.save(output, overwrite=overwrite)
    printer.say(f"wrote {page}")
    if len(made.switch.states) == 1:
        printer.note(f"note: no register neurons of {model} are known; `ttreg calibrate` finds them")
    published = None
    if space is not None:
        folder = Path(model) if isinstance(loaded, TTRegModelMixin) and Path(model).is_dir() else None
        published = _publish(made, space, folder, printer, private=private, dry_run=dry_run, token=model_options.token)
    printer.result({"model": model, "images": pictures, "page": page, "space": published})


def _publish(made: "Demo", space: str, folder: Path | None, printer: Printer, **options: Any) -> dict[str, Any]:
    """Publish the Space, and link it on the card of a checkpoint folder.

    Args:
        made: what is published.
        space: where.
        folder: of the checkpoint; `None`: it lies in none.
        printer: tells it.
        options: of `publish_space`.
    """
    from ttreg_hf.demonstration.space import publish_space
    from ttreg_hf.publishing.card_in_folder import add_space

    published, card = publish_space(made, space, **options)
    for name, size in published.sizes.items():
        printer.say(f"{size:>14,}  {name}")
    told: dict[str, Any] = {"repo_id": space, "files": dict(published.sizes), "commit": None}
    if published.commit is None:
        printer.say(f"dry run: nothing was sent to {space}. Its card:\n\n{card}")
        return told
    printer.say(f"{'published' if published.changed else 'unchanged'}  {published.commit.commit_url}")
    printer.note("note: the pictures on the page can be seen by whoever may see the Space")
    for file in [] if folder is None else add_space(folder, space):
        printer.say(f"wrote {file}, for the link to the Space")
    return told | {"commit": published.commit.oid}
