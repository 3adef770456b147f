"""`ttreg evaluate`: does it help?"""

import dataclasses
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ttreg_hf.cli import options
from ttreg_hf.cli.evaluate_options import DATA_PANEL, BoxFormat, DataOptions, TaskName, TaskOptions
from ttreg_hf.cli.inputs import calibration_of, model_source, open_model, read_calibration
from ttreg_hf.cli.printer import Printer, is_first_rank, say_working
from ttreg_hf.cli.progress import progress_bars

if TYPE_CHECKING:
    from ttreg_hf.calibration.calibration_result import CalibrationResult
    from ttreg_hf.evaluation.evaluation_config import EvaluationConfig
    from ttreg_hf.evaluation.evaluation_result import Evaluation
    from ttreg_hf.evaluation.examples import Columns


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
        int, typer.Option(help="Of random neurons, random patches and intervals.", rich_help_panel=DATA_PANEL)
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
    neurons = None if calibration is None else read_calibration(calibration)
    chosen, config = _task(kind, task_options, neurons), _config(data_options, seed)
    _check_splits(kind, data_options.split, data_options.train_split)
    _check_columns(chosen, data_options)
    token = model_options.token
    if is_first_rank() and (folder := output or _folder_of(model, calibration)) is not None:
        check_writable(folder)
    find = functools.partial(find_labelled, dataset, config=data_options.config, token=token)
    data, source = find(split=data_options.split)
    train = find(split=data_options.train_split)[0] if kind.learns else None

    processes = Processes.launched(model_options.device)
    model_at = model_source(model, model_options, device=processes.device)
    loaded, processor = open_model(model_at)
    told_by = neurons or calibration_of(loaded, model_at)
    chosen = _task(kind, task_options, told_by)
    trained = None
    if trained_registers is not None:
        others = dataclasses.replace(model_options, revision=None)
        trained, _ = open_model(model_source(trained_registers, others, device=processes.device))
    printer.note(f"{loaded.device}, data set: {source} (the first {config.num_images})")
    with progress_bars() as progress:
        found = evaluation_run.evaluate(
            loaded,
            data,
            task=chosen,
            train=train,
            columns=_columns(data_options),
            config=config,
            register_neurons=neurons,
            calibration=told_by,
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


def _task(kind: Any, given: TaskOptions, calibration: "CalibrationResult | None") -> Any:
    """The task with its settings; what counts as an outlier is the calibration's, where it is not given.

    Raises:
        typer.BadParameter: a value that it does not take.
    """
    settings = given.settings(kind)
    outliers = ("detection_layer", "norm_threshold")
    if calibration is not None and not calibration.on_other_weights and not set(outliers) & set(settings):
        settings |= {name: getattr(calibration.norms, name) for name in outliers if name in kind.__dataclass_fields__}
    try:
        return kind(**settings)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _config(data: DataOptions, seed: int) -> "EvaluationConfig":
    from ttreg_hf.evaluation.evaluation_config import EvaluationConfig

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
            rows=tuple(data.row) if data.row else None,
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
    from ttreg_hf.report.evaluation_table import endpoint_sentence, evaluation_table
    from ttreg_hf.report.quantisation_words import quantisation_words

    printer.show_table(evaluation_table(found), left=2)
    learned = f", learned from {found.num_training_images}" if found.num_training_images else ""
    printer.say(f"{found.task} on {found.source}: {found.num_images} images{learned}")
    for line in quantisation_words(found):
        printer.say(line)
    printer.say(
        "Intervals: images drawn again with replacement; what was learned, and the random neurons, stay as they are."
    )
    printer.say(endpoint_sentence(found))
    if found.threshold is not None:
        printer.say(f"Outlier patches of interpolated and masked: {found.threshold}.")
