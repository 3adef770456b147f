"""What an evaluation found, and the file that keeps it: `evaluation.json`, one entry a task and data set."""

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ttreg_hf.images.data_source import DataSource
from ttreg_hf.measuring.intervals import Interval
from ttreg_hf.records import from_json
from ttreg_hf.writing import write_into

EVALUATION_FILE = "evaluation.json"
PRIMARY, EXPLORATORY = "primary", "exploratory"


@dataclass(frozen=True)
class Figure:
    """One metric of one row.

    Args:
        metric: such as `"CorLoc"`.
        setting: what distinguishes it from others of that name; may be empty.
        row: which model, such as `"patched"`.
        value: from 0 to 1.
        low, high: its interval over images; none of fewer than eight.
        difference: to the base model's, on the same images, with its interval; `None` for the base model, and where
            it has no such figure.
        hub_metric: what the Hub calls the metric, if the task says so.
        endpoint: `"primary"`, of which a task has one, named before anything was measured, or `"exploratory"`.
        patched_minus: the patched model's value minus this one, on the same images, with its interval; `None` for the
            base model, whose `patched_minus` is the patched model's `difference`, and for the patched model.
    """

    metric: str
    setting: str
    row: str
    value: float
    low: float | None
    high: float | None
    difference: Interval | None = None
    hub_metric: str | None = None
    endpoint: str = EXPLORATORY
    patched_minus: Interval | None = None

    @property
    def label(self) -> str:
        """Metric and setting, and what sort of endpoint it is."""
        setting = f" ({self.setting})" if self.setting else ""
        return f"{self.metric}{setting}, {self.endpoint}"


@dataclass(frozen=True)
class CalibratedThreshold:
    """By which outlier patches are told where nothing is known of them but their norm.

    Args:
        norm_threshold: L2 norm over channels that an outlier is strictly above.
        detection_layer: block whose raw output is looked at, 0-based.
        image_size: height and width in pixels that it was found at; at others norms may be others.
    """

    norm_threshold: float
    detection_layer: int
    image_size: tuple[int, int]

    def __str__(self) -> str:
        height, width = self.image_size
        return (
            f"norms above {self.norm_threshold:.4g} after block {self.detection_layer}, as calibrated at {height} x "
            f"{width} px"
        )


@dataclass(frozen=True)
class Evaluation:
    """One task on one data set.

    Args:
        task: its name.
        settings: of the task.
        hub_task: what the Hub calls the task, if the task says so.
        source: of the data set; of a folder its own name.
        model: Hub id, or a folder's own name.
        base_model: Hub id of the base model, if it has one.
        trained_registers: the same of the model with trained registers, if there was one.
        num_images: images measured.
        num_training_images: images learned from at most; 0 if the task does not learn.
        bad_images: names of files that could not be read.
        image_size: as asked for; `None`: the model's own.
        confidence: of the intervals.
        seed: of random neurons and of the images drawn for the intervals.
        figures: metrics in the task's order, rows within each.
        versions: of packages.
        created: UTC, ISO 8601.
        whole_split: whether all images of the data set were measured, and none was unreadable.
        threshold: by which `interpolated` and `masked` tell outlier patches; `None` without such a row.
        left_out: rows that could not be measured, and why.
    """

    task: str
    settings: dict[str, Any]
    hub_task: str | None
    source: DataSource
    model: str
    base_model: str | None
    trained_registers: str | None
    num_images: int
    num_training_images: int
    bad_images: tuple[str, ...]
    image_size: int | str | None
    confidence: float
    seed: int
    figures: tuple[Figure, ...]
    versions: dict[str, str]
    created: str
    whole_split: bool = False
    threshold: CalibratedThreshold | None = None
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def rows(self) -> tuple[str, ...]:
        """Names of the models measured, in order."""
        return tuple(dict.fromkeys(figure.row for figure in self.figures))

    def by_label(self) -> Iterator[tuple[str, dict[str, Figure]]]:
        """Label -> row -> figure."""
        for label in dict.fromkeys(figure.label for figure in self.figures):
            yield label, {figure.row: figure for figure in self.figures if figure.label == label}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON takes them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Evaluation":
        """What `to_dict` gave."""
        return from_json(cls, fields)


def read_evaluations(directory: str | Path) -> tuple[Evaluation, ...]:
    """What `evaluation.json` of a folder keeps; nothing if there is none.

    Raises:
        ValueError: it is not what `write_evaluation` wrote.
    """
    path = Path(directory) / EVALUATION_FILE
    if not path.is_file():
        return ()
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))["evaluations"]
        return tuple(Evaluation.from_dict(fields) for fields in kept)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} must be what `ttreg evaluate` wrote, got something else ({type(error).__name__}: {error}). "
            "Remove it, and evaluate again."
        ) from error


def write_evaluation(directory: str | Path, evaluation: Evaluation) -> tuple[Evaluation, ...]:
    """Add to `evaluation.json` of a folder, which is made; an earlier entry of the same task and data set goes.

    Returns:
        All that it keeps now.
    """
    directory = Path(directory)
    others = [
        kept
        for kept in read_evaluations(directory)
        if (kept.task, kept.source, kept.model) != (evaluation.task, evaluation.source, evaluation.model)
    ]
    kept = (*others, evaluation)
    directory.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"evaluations": [each.to_dict() for each in kept]}, indent=2, allow_nan=False)
    write_into(directory, EVALUATION_FILE, f"{text}\n".encode())
    return kept
