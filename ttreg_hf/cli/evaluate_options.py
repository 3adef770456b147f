"""What `ttreg evaluate` is told: images, what is known about them, and the settings of a task."""

from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any

import typer

from ttreg_hf.cli import options

_NONE = -1  # as `--ignore-index`
_FIELDS = {  # of tasks, by option
    "--feature": ("features",),
    "--layer": ("layers", "layer", "detection_layer"),
    "--normalize": ("normalize",),
    "--bias": ("biases",),
    "--ignore-index": ("ignore_index",),
    "--num-classes": ("num_classes",),
    "--epochs": ("epochs",),
    "--class-name": ("class_names",),
    "--template": ("templates",),
    "--scheme": ("schemes",),
    "--also": ("also",),
    "--num-calibration-images": ("num_calibration_images",),
    "--norm-threshold": ("norm_threshold",),
}
DATA_PANEL, _TASK = "Images and what is known about them", "Settings of a task (each has some of them)"


class TaskName(str, Enum):
    """What can be measured."""

    object_discovery = "object-discovery"
    segmentation = "segmentation"
    segmentation_probe = "segmentation-probe"
    knn = "knn"
    linear = "linear"
    zero_shot = "zero-shot"
    token_probe = "token-probe"
    quantisation = "quantisation"


class BoxFormat(str, Enum):
    """How boxes are written down."""

    xyxy = "xyxy"
    xywh = "xywh"
    voc = "voc"


def _column(what: str) -> Any:
    return typer.Option(help=f"Column with {what}. Default: by its usual names.", rich_help_panel=DATA_PANEL)


@dataclass(frozen=True)
class DataOptions:
    """Images, and what is known about them."""

    config: Annotated[
        str | None,
        typer.Option("--config", metavar="NAME", help="Configuration, if it has several.", rich_help_panel=DATA_PANEL),
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
            help="xyxy: right and bottom are not inside; xywh: COCO's; voc: PASCAL's, from 1.",
            rich_help_panel=DATA_PANEL,
        ),
    ] = BoxFormat.xyxy
    num_images: Annotated[int, typer.Option(min=1, help="How many images at most.")] = 10_000
    num_training_images: Annotated[
        int, typer.Option(min=1, help="How many images to learn from, at most.", rich_help_panel=DATA_PANEL)
    ] = 10_000
    batch_size: Annotated[int, typer.Option(min=1, help="Images in a forward pass.", rich_help_panel=DATA_PANEL)] = 16
    image_size: Annotated[
        str | None,
        typer.Option(
            help="Pixels, or original. Default: the model's own; classification: as its processor does.",
            rich_help_panel=DATA_PANEL,
        ),
    ] = None
    row: Annotated[
        list[str] | None,
        typer.Option(
            help="A row beside the base model, such as patched or interpolated; may be given again. Default: all.",
            rich_help_panel=DATA_PANEL,
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
            help="object-discovery, token-probe: block; may be given again. Default: -1, the last. "
            "quantisation: block where outliers are detected.",
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

    scheme: Annotated[
        list[str] | None,
        typer.Option(
            help="quantisation: such as 'int8 dynamic'; may be given again. Default: all that run here.",
            rich_help_panel=_TASK,
        ),
    ] = None
    also: Annotated[
        list[str] | None,
        typer.Option(
            help="quantisation: knn or segmentation, measured too; may be given again.", rich_help_panel=_TASK
        ),
    ] = None
    num_calibration_images: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="quantisation: training images that static scales are measured on. Default: 64.",
            rich_help_panel=_TASK,
        ),
    ] = None
    norm_threshold: Annotated[
        float | None,
        typer.Option(
            help="quantisation: norm above which a patch is an outlier. Default: measured.", rich_help_panel=_TASK
        ),
    ] = None

    def settings(self, kind: Any) -> dict[str, Any]:
        """Fields of a task.

        Raises:
            typer.BadParameter: an option of another task.
        """
        given = {option: getattr(self, option.removeprefix("--").replace("-", "_")) for option in _FIELDS}
        return _settings(kind, {option: _field(value) for option, value in given.items() if value not in (None, [])})


def _field(value: Any) -> Any:
    """What an option gave, as a task's field takes it."""
    if isinstance(value, bool):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


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
        if name in ("layer", "detection_layer"):
            if len(value) > 1:
                raise typer.BadParameter(f"the task {kind.name} takes one layer.", param_hint=option)
            value = value[0]
        if option == "--ignore-index" and value == _NONE:
            value = None
        chosen[name] = value
    return chosen
