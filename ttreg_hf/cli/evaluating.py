"""`ttreg evaluate`: does it help?"""

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from ttreg_hf.cli import options
from ttreg_hf.cli.opening import open_model, open_processes, read_calibration
from ttreg_hf.cli.printing import Printer, is_first_rank, new_table, progress_bars

if TYPE_CHECKING:
    from ttreg_hf.evaluation.result import Evaluation

_NONE = -1  # as `--ignore-index`
_FIELDS = {  # of tasks, by option
    "--feature": ("features",),
    "--layer": ("layers", "layer"),
    "--normalize": ("normalize",),
    "--bias": ("biases",),
    "--ignore-index": ("ignore_index",),
    "--num-classes": ("num_classes",),
    "--epochs": ("epochs",),
    "--class-name": ("class_names",),
    "--template": ("templates",),
}
_DATA, _TASK = "Images and what is known about them", "Settings of a task"


class TaskName(str, Enum):
    """What can be measured."""

    object_discovery = "object-discovery"
    segmentation = "segmentation"
    segmentation_probe = "segmentation-probe"
    knn = "knn"
    linear = "linear"
    zero_shot = "zero-shot"
    token_probe = "token-probe"


class BoxFormat(str, Enum):
    """How boxes are written down."""

    xyxy = "xyxy"
    xywh = "xywh"
    voc = "voc"


def _column(what: str) -> Any:
    return typer.Option(help=f"Column with {what}. Default: by its usual names.", rich_help_panel=_DATA)


def evaluate(
    model: options.Model,
    task: Annotated[TaskName, typer.Option("--task", help="What is measured.", show_default=False)],
    dataset: Annotated[
        str,
        typer.Option(help="Folder or files, or Hub id.", rich_help_panel=_DATA, show_default=False),
    ],
    split: Annotated[str | None, typer.Option(help="To measure on.", rich_help_panel=_DATA)] = None,
    train_split: Annotated[
        str | None, typer.Option(help="To learn from, where the task learns.", rich_help_panel=_DATA)
    ] = None,
    image_column: Annotated[str | None, _column("images")] = None,
    mask_column: Annotated[str | None, _column("masks")] = None,
    boxes_column: Annotated[str | None, _column("boxes")] = None,
    label_column: Annotated[str | None, _column("labels")] = None,
    box_format: Annotated[
        BoxFormat,
        typer.Option(
            help="xyxy: right and bottom are not inside; xywh: COCO's; voc: PASCAL's, from 1.", rich_help_panel=_DATA
        ),
    ] = BoxFormat.xyxy,
    num_images: Annotated[int, typer.Option(min=1, help="How many at most.", rich_help_panel=_DATA)] = 10_000,
    num_training_images: Annotated[int, typer.Option(min=1, help="How many at most.", rich_help_panel=_DATA)] = 10_000,
    batch_size: Annotated[int, typer.Option(min=1, help="Images in a forward pass.", rich_help_panel=_DATA)] = 16,
    image_size: Annotated[
        str | None,
        typer.Option(
            help="Pixels, or original. Default: the model's own; classification: as its processor does.",
            rich_help_panel=_DATA,
        ),
    ] = None,
    workers: options.Workers = None,
    max_bad_images: options.MaxBadImages = 0.01,
    feature: Annotated[
        list[str] | None,
        typer.Option(
            help="object-discovery: key, query, value or out; may be given again. Default: all.", rich_help_panel=_TASK
        ),
    ] = None,
    layer: Annotated[
        list[int] | None,
        typer.Option(
            help="object-discovery, token-probe: block; may be given again. Default: -1, the last.",
            rich_help_panel=_TASK,
        ),
    ] = None,
    normalize: Annotated[
        bool | None,
        typer.Option(
            "--normalize/--no-normalize", help="object-discovery: cosines. Default: both.", rich_help_panel=_TASK
        ),
    ] = None,
    bias: Annotated[
        list[float] | None,
        typer.Option(
            help="object-discovery: added to similarities; may be given again. Default: 0.", rich_help_panel=_TASK
        ),
    ] = None,
    ignore_index: Annotated[
        int | None,
        typer.Option(
            help="segmentation, segmentation-probe: class of pixels that do not count; -1: none. Default: 255.",
            rich_help_panel=_TASK,
        ),
    ] = None,
    num_classes: Annotated[
        int | None,
        typer.Option(
            min=2, help="segmentation-probe. Default: one more than the largest class.", rich_help_panel=_TASK
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="segmentation-probe. Default: 10.", rich_help_panel=_TASK)
    ] = None,
    class_name: Annotated[
        list[str] | None,
        typer.Option(help="zero-shot: in the order of labels. Default: the data set's.", rich_help_panel=_TASK),
    ] = None,
    template: Annotated[
        list[str] | None,
        typer.Option(help="zero-shot: sentence with {}; may be given again.", rich_help_panel=_TASK),
    ] = None,
    calibration: options.Calibration = None,
    trained_registers: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="A model that was trained with registers, to be measured beside it."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", metavar="DIR", help="Folder for evaluation.json. Default: MODEL, if it is a checkpoint folder."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of random neurons, random patches and intervals.")] = 0,
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    token: options.Token = None,
    device: options.Device = None,
    dtype: options.DtypeOption = None,
    json: options.Json = False,
) -> None:
    """Measure whether patching helps, beside the base model and controls, with intervals over images.

    MODEL is patched; or a stock one, with the neurons of `--calibration` or the published ones. On many GPUs:
    `accelerate launch -m ttreg_hf evaluate ...`.
    """
    from ttreg_hf.evaluation import driver
    from ttreg_hf.evaluation.examples import Columns
    from ttreg_hf.evaluation.packages import check_packages
    from ttreg_hf.evaluation.sources import find_labelled
    from ttreg_hf.evaluation.tasks import TASKS
    from ttreg_hf.modeling.ttreg_base import TTRegModelMixin

    printer = Printer(json)
    check_packages()
    kind = TASKS[task.value]
    given = {
        "--feature": _tuple(feature),
        "--layer": _tuple(layer),
        "--normalize": None if normalize is None else (normalize,),
        "--bias": _tuple(bias),
        "--ignore-index": ignore_index,
        "--num-classes": num_classes,
        "--epochs": epochs,
        "--class-name": _tuple(class_name),
        "--template": _tuple(template),
    }
    chosen = _settings(kind, {option: value for option, value in given.items() if value is not None})
    try:
        config = driver.EvaluationConfig(
            num_images=num_images,
            num_training_images=num_training_images,
            batch_size=batch_size,
            image_size=int(image_size) if image_size is not None and image_size.isdecimal() else image_size,
            seed=seed,
            workers=workers,
            max_bad_share=max_bad_images,
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    _check_splits(kind, split, train_split)
    data, name = find_labelled(dataset, split=split, token=token)
    train = find_labelled(dataset, split=train_split, token=token)[0] if kind.learns else None
    neurons = None if calibration is None else read_calibration(calibration).register_neurons

    accelerator = open_processes(device)
    if accelerator is not None:
        device = str(accelerator.device)
    opening: Any = {"trust_remote_code": trust_remote_code, "token": token, "device": device, "dtype": dtype}
    loaded, processor = open_model(model, revision=revision, **opening)
    trained = None if trained_registers is None else open_model(trained_registers, revision=None, **opening)[0]
    printer.note(f"{loaded.device}, data set: {name} (the first {num_images})")
    with progress_bars() as progress:
        found = driver.evaluate(
            loaded,
            data,
            task=kind(**chosen),
            train=train,
            columns=Columns(image_column, mask_column, boxes_column, label_column, box_format.value),
            config=config,
            register_neurons=neurons,
            trained_registers=trained,
            processor=processor,
            accelerator=accelerator,
            dataset_name=name,
            progress=progress,
            say=printer.note,
        )
    if accelerator is not None:
        accelerator.end_training()
    if not is_first_rank():
        return
    is_checkpoint = Path(model).is_dir() and isinstance(loaded, TTRegModelMixin) and calibration is None
    files = _write(found, Path(model) if is_checkpoint else None, output)
    printer.show(_table(found))
    for line in _in_words(found):
        printer.say(line)
    for file in files:
        printer.say(f"wrote {file}")
    printer.result({**found.to_dict(), "files": files})


def _tuple(values: list[Any] | None) -> tuple[Any, ...] | None:
    return None if not values else tuple(values)


def _settings(kind: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Fields of a task from its options.

    Raises:
        typer.BadParameter: an option of another task.
    """
    chosen = {}
    for option, value in given.items():
        name = next((name for name in _FIELDS[option] if name in kind.__dataclass_fields__), None)
        if name is None:
            raise typer.BadParameter(f"the task {kind.name} has no such setting.", param_hint=option)
        if name == "layer":
            if len(value) > 1:
                raise typer.BadParameter(f"the task {kind.name} takes one layer.", param_hint=option)
            value = value[0]
        if option == "--ignore-index" and value == _NONE:
            value = None
        chosen[name] = value
    return chosen


def _check_splits(kind: Any, split: str | None, train_split: str | None) -> None:
    if kind.learns and (split is None or train_split is None or split == train_split):
        raise typer.BadParameter(
            f"the task {kind.name} learns from one split and is measured on another: give both, such as "
            "`--train-split train --split validation`.",
            param_hint="--train-split",
        )


def _write(found: "Evaluation", checkpoint: Path | None, output: Path | None) -> list[Path]:
    """Into `--output`; else into the checkpoint folder, and onto its card; else nowhere."""
    from ttreg_hf.checkpoint import add_evaluation
    from ttreg_hf.evaluation.result import EVALUATION_FILE, write_evaluation

    if output is not None:
        write_evaluation(output, found)
        return [output / EVALUATION_FILE]
    return [] if checkpoint is None else add_evaluation(checkpoint, found)


def _table(found: "Evaluation") -> Table:
    from ttreg_hf.evaluation.presenting import table_header, table_lines

    header = table_header(found)
    table = new_table(*header, left=header[:2])
    for line in table_lines(found):
        table.add_row(*line)
    return table


def _in_words(found: "Evaluation") -> list[str]:
    learned = f", learned from {found.num_training_images}" if found.num_training_images else ""
    return [
        f"{found.task} on {found.dataset}: {found.num_images} images{learned}",
        "Intervals: images drawn again with replacement; what was learned, and the random neurons, stay as they are.",
    ]
