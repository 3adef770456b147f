"""`ttreg evaluate`: does it help?"""

import dataclasses
import functools
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ttreg_hf.cli import options
from ttreg_hf.cli.inputs import model_source, open_model, read_calibration
from ttreg_hf.cli.printer import Printer, is_first_rank, say_working
from ttreg_hf.cli.progress import progress_bars

if TYPE_CHECKING:
    from ttreg_hf.evaluation.evaluation_result import Evaluation
    from ttreg_hf.evaluation.evaluation_run import EvaluationConfig
    from ttreg_hf.evaluation.examples import Columns

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
_DATA, _TASK = "Images and what is known about them", "Settings of a task (each has some of them)"


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


@dataclass(frozen=True)
class DataOptions:
    """Images, and what is known about them."""

    config: Annotated[
        str | None,
        typer.Option("--config", metavar="NAME", help="Configuration, if it has several.", rich_help_panel=_DATA),
    ] = None
    split: Annotated[str | None, typer.Option(help="Part of the data set to measure on.")] = None
    train_split: Annotated[str | None, typer.Option(help="Part to learn from, where the task learns.")] = None
    image_column: Annotated[str | None, _column("images")] = None
    mask_column: Annotated[str | None, _column("masks")] = None
    boxes_column: Annotated[str | None, _column("boxes")] = None
    label_column: Annotated[str | None, _column("labels")] = None
    box_format: Annotated[
        BoxFormat,
        typer.Option(
            help="xyxy: right and bottom are not inside; xywh: COCO's; voc: PASCAL's, from 1.", rich_help_panel=_DATA
        ),
    ] = BoxFormat.xyxy
    num_images: Annotated[int, typer.Option(min=1, help="How many images at most.")] = 10_000
    num_training_images: Annotated[
        int, typer.Option(min=1, help="How many images to learn from, at most.", rich_help_panel=_DATA)
    ] = 10_000
    batch_size: Annotated[int, typer.Option(min=1, help="Images in a forward pass.", rich_help_panel=_DATA)] = 16
    image_size: Annotated[
        str | None,
        typer.Option(
            help="Pixels, or original. Default: the model's own; classification: as its processor does.",
            rich_help_panel=_DATA,
        ),
    ] = None
    workers: options.Workers = None
    max_bad_images: options.MaxBadImages = 0.01


@dataclass(frozen=True)
class TaskOptions:
    """Settings of a task; each task has some of them."""

    feature: Annotated[
        list[str] | None,
        typer.Option(
            help="object-discovery: key, query, value or out; may be given again. Default: all.", rich_help_panel=_TASK
        ),
    ] = None
    layer: Annotated[
        list[int] | None,
        typer.Option(
            help="object-discovery, token-probe: block; may be given again. Default: -1, the last.",
            rich_help_panel=_TASK,
        ),
    ] = None
    normalize: Annotated[
        bool | None,
        typer.Option(
            "--normalize/--no-normalize",
            help="object-discovery: cosines, not products. Default: both.",
            rich_help_panel=_TASK,
        ),
    ] = None
    bias: Annotated[
        list[float] | None,
        typer.Option(
            help="object-discovery: added to similarities; may be given again. Default: 0.", rich_help_panel=_TASK
        ),
    ] = None
    ignore_index: Annotated[
        int | None,
        typer.Option(
            help="segmentation, segmentation-probe: class of pixels that do not count; -1: none. Default: 255.",
            rich_help_panel=_TASK,
        ),
    ] = None
    num_classes: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="segmentation-probe: how many classes. Default: one more than the largest.",
            rich_help_panel=_TASK,
        ),
    ] = None
    epochs: Annotated[
        int | None,
        typer.Option(
            min=1, help="segmentation-probe: passes over the training images. Default: 10.", rich_help_panel=_TASK
        ),
    ] = None
    class_name: Annotated[
        list[str] | None,
        typer.Option(help="zero-shot: names in the order of labels. Default: the data set's.", rich_help_panel=_TASK),
    ] = None
    template: Annotated[
        list[str] | None,
        typer.Option(help="zero-shot: sentence with {}; may be given again.", rich_help_panel=_TASK),
    ] = None

    def settings(self, kind: Any) -> dict[str, Any]:
        """Fields of a task.

        Raises:
            typer.BadParameter: an option of another task.
        """
        given = {
            "--feature": _tuple(self.feature),
            "--layer": _tuple(self.layer),
            "--normalize": None if self.normalize is None else (self.normalize,),
            "--bias": _tuple(self.bias),
            "--ignore-index": self.ignore_index,
            "--num-classes": self.num_classes,
            "--epochs": self.epochs,
            "--class-name": _tuple(self.class_name),
            "--template": _tuple(self.template),
        }
        return _settings(kind, {option: value for option, value in given.items() if value is not None})


def evaluate(
    model: options.Model,
    task: Annotated[TaskName, typer.Option("--task", help="What is measured.", show_default=False)],
    dataset: Annotated[
        str,
        typer.Option(help="Folder or files, or Hub id.", show_default=False),
    ],
    data_options: DataOptions,
    task_options: TaskOptions,
    model_options: options.ModelOptions,
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
    seed: Annotated[
        int, typer.Option(help="Of random neurons, random patches and intervals.", rich_help_panel=_DATA)
    ] = 0,
    json: options.Json = False,
) -> None:
    """Measure whether patching helps, beside the base model and controls, with intervals over images.

    MODEL is patched; or a stock one, with the neurons of `--calibration` or the published ones.

    On many GPUs: `accelerate launch -m ttreg_hf evaluate ...`.
    """
    say_working("opening the images ...")
    from ttreg_hf.evaluation import evaluation_run
    from ttreg_hf.evaluation.labelled_sources import find_labelled
    from ttreg_hf.evaluation.packages import check_packages
    from ttreg_hf.evaluation.tasks import TASKS
    from ttreg_hf.images.processes import Processes
    from ttreg_hf.writing import check_writable

    printer = Printer(json)
    check_packages()
    kind = TASKS[task.value]
    chosen, config = task_options.settings(kind), _config(data_options, seed)
    _check_splits(kind, data_options.split, data_options.train_split)
    _check_columns(kind, data_options)
    token = model_options.token
    if is_first_rank() and (folder := output or _folder_of(model, calibration)) is not None:
        check_writable(folder)
    find = functools.partial(find_labelled, dataset, config=data_options.config, token=token)
    data, source = find(split=data_options.split)
    train = find(split=data_options.train_split)[0] if kind.learns else None
    neurons = None if calibration is None else read_calibration(calibration)

    processes = Processes.launched(model_options.device)
    loaded, processor = open_model(model_source(model, model_options, device=processes.device))
    trained = None
    if trained_registers is not None:
        others = dataclasses.replace(model_options, revision=None)
        trained, _ = open_model(model_source(trained_registers, others, device=processes.device))
    printer.note(f"{loaded.device}, data set: {source} (the first {config.num_images})")
    with progress_bars() as progress:
        found = evaluation_run.evaluate(
            loaded,
            data,
            task=kind(**chosen),
            train=train,
            columns=_columns(data_options),
            config=config,
            register_neurons=neurons,
            trained_registers=trained,
            processor=processor,
            accelerator=processes.accelerator,
            source=source,
            progress=progress,
            say=printer.note,
        )
    processes.end()
    if not is_first_rank():
        return
    files = _write(found, _checkpoint_folder(model, loaded, calibration), output)
    _print(printer, found)
    for file in files:
        printer.say(f"wrote {file}")
    printer.result({**found.to_dict(), "files": files})


def _config(data: DataOptions, seed: int) -> "EvaluationConfig":
    from ttreg_hf.evaluation.evaluation_run import EvaluationConfig

    size = data.image_size
    try:
        return EvaluationConfig(
            num_images=data.num_images,
            num_training_images=data.num_training_images,
            batch_size=data.batch_size,
            image_size=int(size) if size is not None and size.isdecimal() else size,
            seed=seed,
            workers=data.workers,
            max_bad_share=data.max_bad_images,
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _columns(data: DataOptions) -> "Columns":
    from ttreg_hf.evaluation.examples import Columns

    return Columns(data.image_column, data.mask_column, data.boxes_column, data.label_column, data.box_format.value)


def _folder_of(model: str, calibration: Path | None) -> Path | None:
    """MODEL, if it is a folder whose model is measured with the neurons that it has."""
    return Path(model) if Path(model).is_dir() and calibration is None else None


def _checkpoint_folder(model: str, loaded: Any, calibration: Path | None) -> Path | None:
    """MODEL, if it is the folder of a patched checkpoint that is measured as it is."""
    from ttreg_hf.modeling.modeling_ttreg import TTRegModelMixin

    return _folder_of(model, calibration) if isinstance(loaded, TTRegModelMixin) else None


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


def _check_columns(kind: Any, data: DataOptions) -> None:
    """Refuse a column that the task does not read."""
    for truth in ("mask", "boxes", "label"):
        if truth not in kind.truths and getattr(data, f"{truth}_column") is not None:
            raise typer.BadParameter(f"the task {kind.name} reads no {truth}.", param_hint=f"--{truth}-column")
    if "boxes" not in kind.truths and data.box_format is not BoxFormat.xyxy:
        raise typer.BadParameter(f"the task {kind.name} reads no boxes.", param_hint="--box-format")


def _check_splits(kind: Any, split: str | None, train_split: str | None) -> None:
    if not kind.learns and train_split is not None:
        raise typer.BadParameter(f"the task {kind.name} does not learn.", param_hint="--train-split")
    if kind.learns and (split is None or train_split is None or split == train_split):
        raise typer.BadParameter(
            f"the task {kind.name} learns from one split and is measured on another: give both, such as "
            "`--train-split train --split validation`.",
            param_hint="--train-split",
        )


def _write(found: "Evaluation", checkpoint: Path | None, output: Path | None) -> list[Path]:
    """Into `--output`; else into the checkpoint folder, and onto its card; else nowhere."""
    from ttreg_hf.evaluation.evaluation_result import EVALUATION_FILE, write_evaluation
    from ttreg_hf.publishing.card_in_folder import add_evaluation

    if output is not None:
        write_evaluation(output, found)
        return [output / EVALUATION_FILE]
    return [] if checkpoint is None else add_evaluation(checkpoint, found)


def _print(printer: Printer, found: "Evaluation") -> None:
    from ttreg_hf.report.evaluation_table import evaluation_table

    printer.show_table(evaluation_table(found), left=2)
    learned = f", learned from {found.num_training_images}" if found.num_training_images else ""
    printer.say(f"{found.task} on {found.source}: {found.num_images} images{learned}")
    printer.say(
        "Intervals: images drawn again with replacement; what was learned, and the random neurons, stay as they are."
    )
