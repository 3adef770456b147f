"""Measures a patched model on a task, beside its base model and controls. In one process or in many."""

import dataclasses
import datetime
import functools
import importlib.metadata
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ttreg_hf.applying import add_test_time_registers
from ttreg_hf.evaluation.evaluation_result import Evaluation, Figure
from ttreg_hf.evaluation.examples import Columns, LabelledBatches, LabelledImages
from ttreg_hf.evaluation.packages import check_packages
from ttreg_hf.evaluation.rows import BASE, model_rows
from ttreg_hf.evaluation.scores import Scores, interval_of, interval_of_difference
from ttreg_hf.evaluation.tasks import Task, task_called
from ttreg_hf.evaluation.whole_image import ORIGINAL, whole_image
from ttreg_hf.images.batches import ImageBatches
from ttreg_hf.images.data_source import DataSource
from ttreg_hf.images.processes import Processes
from ttreg_hf.images.progress import Progress, Say, say_nothing, silent
from ttreg_hf.images.workers import decode_workers
from ttreg_hf.loading import is_hub_id, model_and_processor
from ttreg_hf.measuring.intervals import Bootstrap
from ttreg_hf.measuring.tower import VisionTower
from ttreg_hf.modeling.modeling_ttreg import TTRegModelMixin
from ttreg_hf.records import check_types


@dataclass(frozen=True)
class EvaluationConfig:
    """How much is measured, and how sure it is.

    Args:
        num_images: the first ones of the data set, at most.
        num_training_images: likewise, where a task learns.
        batch_size: images in a forward pass.
        image_size: height and width in pixels that whole images are resized to; `None`: the model's own; `"original"`:
            each image's, rounded to whole patches, one image at a time. Classification takes the checkpoint's own
            preprocessing unless it is given.
        resamples: of the images, for the intervals.
        confidence: of the intervals.
        seed: of random neurons and intervals.
        workers: processes that decode; `None`: by device and cores.
        max_bad_share: unreadable images to skip before stopping, as a share.
    """

    num_images: int = 10_000
    num_training_images: int = 10_000
    batch_size: int = 16
    image_size: int | str | None = None
    resamples: int = 1000
    confidence: float = 0.95
    seed: int = 0
    workers: int | None = None
    max_bad_share: float = 0.01

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("num_images", "num_training_images", "batch_size", "resamples"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is 1 or more, got {getattr(self, name)}.")
        if not 0 < self.confidence < 1:
            raise ValueError(f"`confidence` is between 0 and 1, got {self.confidence}.")
        size = self.image_size
        if not (size is None or size == ORIGINAL or (isinstance(size, int) and size > 0)):
            raise ValueError(f"`image_size` is a number of pixels or {ORIGINAL!r}, got {size!r}.")


def evaluate(
    model_or_id: PreTrainedModel | str | Path,
    data: Any,
    *,
    task: str | Task,
    train: Any = None,
    columns: Columns | None = None,
    config: EvaluationConfig | None = None,
    register_neurons: Any = None,
    trained_registers: PreTrainedModel | str | None = None,
    processor: Any = None,
    accelerator: Any = None,
    source: DataSource | str | None = None,
    progress: Progress = silent,
    say: Say = say_nothing,
) -> Evaluation:
    """Does patching help? A task's metrics of the base model, the patched one and controls, with paired intervals.

    Rows: the base model; the patched model; its neurons zeroed without being moved; as many random neurons moved; a
    model with trained registers, if one is given. All see the same images.

    Args:
        model_or_id: patched model; or a stock one, which is patched with `register_neurons`; or Hub id or path.
            Measured in eval mode; stays as it is.
        data: a `datasets` dataset, map-style or streaming, or a sequence of dicts.
        task: a task's name, or a task with settings, such as `ObjectDiscovery(features=("key",))`.
        train: likewise, to learn from, where the task does.
        columns: where images, masks, boxes and labels are; found by the usual names.
        config: how much is measured.
        register_neurons: `None`: a patched model's own, or the published ones for a stock one.
        trained_registers: model, Hub id or path, such as `"facebook/dinov2-with-registers-large"`.
        processor: image processor; found by the id or path if not given.
        accelerator: an `accelerate.Accelerator`, if several processes share the images.
        source: where the data set comes from, for the record.
        progress: shows how far it is.
        say: takes lines for people.

    Raises:
        ImportError: without the packages of `ttreg_hf[evaluate]`.
        ValueError: an unsupported model, a missing column, no images, or too many unreadable ones.
    """
    check_packages()
    config, columns = config or EvaluationConfig(), columns or Columns()
    task = task_called(task) if isinstance(task, str) else task
    if dataclasses.is_dataclass(task):
        check_types(task)
    if task.learns and train is None:
        raise ValueError(
            f"The task {task.name} learns from training images, got none. Give `train` (`--train-split`)."
        )
    test_images = LabelledImages(data, columns, task.truths)
    train_images = LabelledImages(train, columns, task.truths) if task.learns else None
    device = accelerator.device if accelerator is not None else None
    model, processor = _open(model_or_id, processor, device)
    if register_neurons is not None or not isinstance(model, TTRegModelMixin):
        model = add_test_time_registers(model, register_neurons)
    trained = None if trained_registers is None else _open(trained_registers, processor, device)[0]

    run = _Run(task, config, Processes.of(accelerator), progress)
    found: dict[str, list[Scores]] = {}
    for row, rows_model in model_rows(model, seed=config.seed, trained_registers=trained).items():
        found[row] = []
        for each in run.measure(row, rows_model, processor, test_images, train_images):
            found.setdefault(each.row or row, []).append(each)
    if not found[BASE] or any(math.isnan(scores.value()) for scores in found[BASE]):
        raise ValueError(
            f"The task {task.name} found nothing to measure in the data set. Check its columns and masks."
        )
    if run.bad_images:
        say(f"skipped {len(run.bad_images)} unreadable: {', '.join(run.bad_images)}")
    return Evaluation(
        task=task.name,
        settings=_settings(task),
        hub_task=getattr(task, "hub_task", None),
        source=_public_source(DataSource(description=source) if isinstance(source, str) else source, data),
        model=_public_name(model.name_or_path) or type(model).__name__,
        base_model=_public_name(model.config.base_model_name_or_path, hub_only=True),
        trained_registers=None if trained is None else _public_name(trained.name_or_path) or type(trained).__name__,
        num_images=max(len(scores.places) for scores in found[BASE]),
        num_training_images=run.num_training_images,
        bad_images=tuple(Path(key).name for key in run.bad_images),
        image_size=config.image_size,
        confidence=config.confidence,
        seed=config.seed,
        figures=tuple(_figures(found, config, getattr(task, "hub_metrics", {}))),
        versions={name: importlib.metadata.version(name) for name in ("torch", "transformers", "ttreg_hf")},
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        whole_split=run.saw_all,
    )


class _Run:
    """One task over all rows."""

    def __init__(self, task: Task, config: EvaluationConfig, processes: Processes, progress: Progress) -> None:
        self._task, self._config, self._processes, self._progress = task, config, processes, progress
        self.bad_images: list[str] = []
        self.num_training_images = 0
        self.saw_all = False

    def measure(
        self, row: str, model: PreTrainedModel, processor: Any, test: LabelledImages, train: LabelledImages | None
    ) -> list[Scores]:
        """A row's scores, of all processes' images."""
        config = self._config
        if self._task.whole_images or config.image_size is not None:
            processor = whole_image(VisionTower.of(model), processor, config.image_size)
        tests = self._batches(test, model, processor, config.num_images, row)
        learned = None
        if train is not None:
            learned = self._batches(train, model, processor, config.num_training_images, f"{row}, training")
        scores = self._task.scores(model, tests, learned)
        self.bad_images = self._unreadable(tests) + (self._unreadable(learned) if learned else [])
        record = tests.batches.read_by_all()
        ended = record.end < config.num_images if test.size is None else record.end == test.size
        self.saw_all = ended and not record.bad_images
        if learned is not None:
            ends = self._processes.collect([learned.batches.record.end])
            self.num_training_images = max(ends)
        return scores

    def _batches(
        self, images: LabelledImages, model: PreTrainedModel, processor: Any, num_images: int, stage: str
    ) -> LabelledBatches:
        config, world = self._config, self._processes.world
        batches = ImageBatches(
            images.source(self._processes),
            processor,
            num_images=num_images if images.size is None else min(num_images, images.size),
            batch_size=1 if config.image_size == ORIGINAL else config.batch_size,
            device=model.device,
            processes=self._processes,
            workers=decode_workers(model.device, world) if config.workers is None else config.workers,
            max_bad_share=config.max_bad_share,
            channels=VisionTower.of(model).num_channels,
        )
        batches.check_same_images()
        return LabelledBatches(images, batches, self._progress, stage)

    def _unreadable(self, images: LabelledBatches) -> list[str]:
        return [bad.key for bad in images.batches.read_by_all().bad_images.values()]


def _figures(found: dict[str, list[Scores]], config: EvaluationConfig, hub_metrics: Mapping[str, str]) -> list[Figure]:
    """Metrics in order, rows within each."""
    base = {(scores.metric, scores.setting): scores for scores in found[BASE]}
    names = dict.fromkeys((each.metric, each.setting) for scores in found.values() for each in scores)

    @functools.cache
    def bootstrap_of(num_images: int) -> Bootstrap:
        return Bootstrap(num_images, resamples=config.resamples, confidence=config.confidence, seed=config.seed)

    figures = []
    for name in names:
        rows = {row: each for row, scores in found.items() for each in scores if (each.metric, each.setting) == name}
        for row, scores in rows.items():
            bootstrap = bootstrap_of(len(scores.places))
            interval = interval_of(bootstrap, scores)
            is_base = row == BASE or name not in base
            difference = None if is_base else interval_of_difference(bootstrap, scores, base[name])
            metric = hub_metrics.get(name[0])
            figures.append(Figure(*name, row, interval.value, interval.low, interval.high, difference, metric))
    return figures


def _open(model_or_id: Any, processor: Any, device: Any) -> tuple[PreTrainedModel, Any]:
    """A private copy of a model, and the image processor: the one given, else, if the model is named, its own."""
    model, processor = model_and_processor(model_or_id, processor, device=device)
    return VisionTower.to_measure(model).model, processor


def _public_name(name: str | None, *, hub_only: bool = False) -> str | None:
    """A Hub id as it is; of a local path the last part, which does not say where somebody keeps files."""
    if not name or is_hub_id(name):
        return name or None
    return None if hub_only else Path(name).name


def _public_source(source: DataSource | None, data: Any) -> DataSource:
    """Likewise of a data set."""
    source = source or DataSource.of(data)
    return dataclasses.replace(source, local=Path(source.local).name) if source.local else source


def _settings(task: Any) -> dict[str, Any]:
    """Those that are plain values; tuples become lists, as JSON has them."""
    given = {field.name: getattr(task, field.name) for field in dataclasses.fields(task)}
    plain = (type(None), bool, int, float, str, tuple)
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in given.items()
        if isinstance(value, plain)
    }
