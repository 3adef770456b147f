"""Measures a patched model on a task, beside its base model and controls. In one process or in many."""

import dataclasses
import datetime
import importlib.metadata
import math
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ttreg_hf.applying import add_test_time_registers
from ttreg_hf.calibration.calibration_beside import calibration_beside
from ttreg_hf.calibration.calibration_result import CalibrationResult
from ttreg_hf.evaluation.evaluation_config import EvaluationConfig
from ttreg_hf.evaluation.evaluation_result import Evaluation
from ttreg_hf.evaluation.examples import Columns, LabelledBatches, LabelledImages
from ttreg_hf.evaluation.measured_rows import measured_rows
from ttreg_hf.evaluation.packages import check_packages
from ttreg_hf.evaluation.paired_figures import paired_figures
from ttreg_hf.evaluation.rows import BASE, Row
from ttreg_hf.evaluation.scores import Scores
from ttreg_hf.evaluation.tasks import Task, task_called
from ttreg_hf.evaluation.whole_image import ORIGINAL, whole_image
from ttreg_hf.images.batches import ImageBatches
from ttreg_hf.images.data_source import DataSource
from ttreg_hf.images.processes import Processes
from ttreg_hf.images.progress import Progress, Say, say_nothing, silent
from ttreg_hf.images.workers import DecodingWorkers, decode_workers
from ttreg_hf.loading import is_hub_id, model_and_processor
from ttreg_hf.measuring.tower import VisionTower
from ttreg_hf.modeling.modeling_ttreg import TTRegModelMixin
from ttreg_hf.records import check_types


def evaluate(
    model_or_id: PreTrainedModel | str | Path,
    data: Any,
    *,
    task: str | Task,
    train: Any = None,
    columns: Columns | None = None,
    config: EvaluationConfig | None = None,
    register_neurons: Any = None,
    calibration: CalibrationResult | None = None,
    trained_registers: PreTrainedModel | str | None = None,
    processor: Any = None,
    accelerator: Any = None,
    source: DataSource | str | None = None,
    progress: Progress = silent,
    say: Say = say_nothing,
) -> Evaluation:
    """Does patching help? A task's metrics of the base model, the patched one and controls, with paired intervals.

    Rows: the base model; the patched model; its neurons zeroed without being moved; as many random neurons moved; the
    base model with its outlier patches mended or hidden by hand (see `manual_baselines`); a model with trained
    registers, if one is given. All see the same images.

    Args:
        model_or_id: patched model; or a stock one, which is patched with `register_neurons`; or Hub id or path.
            Measured in eval mode; stays as it is.
        data: a `datasets` dataset, map-style or streaming, or a sequence of dicts.
        task: a task's name, or a task with settings, such as `ObjectDiscovery(features=("key",))`.
        train: likewise, to learn from, where the task does.
        columns: where images, masks, boxes and labels are; found by the usual names.
        config: how much is measured.
        register_neurons: `None`: a patched model's own, or the published ones for a stock one.
        calibration: tells which patches the rows `interpolated` and `masked` treat; `None`: `register_neurons`, if it
            is one, or what lies beside a patched checkpoint. Without any these rows are left out.
        trained_registers: model, Hub id or path, such as `"facebook/dinov2-with-registers-large"`.
        processor: image processor; found by the id or path if not given.
        accelerator: an `accelerate.Accelerator`, if several processes share the images.
        source: where the data set comes from, for the record.
        progress: shows how far it is.
        say: takes lines for people.

    Raises:
        ImportError: without the packages of `ttreg_hf[evaluate]`.
        ValueError: an unsupported model, a missing column, a row asked for that there cannot be, no images, or too
            many unreadable ones.
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
    if calibration is None:
        calibration = _calibration_of(model, model_or_id, register_neurons)
    if register_neurons is not None or not isinstance(model, TTRegModelMixin):
        model = add_test_time_registers(model, register_neurons)
    trained = None if trained_registers is None else _open(trained_registers, processor, device)[0]

    measured = measured_rows(model, task, calibration=calibration, trained=trained, config=config)
    for reason in measured.reasons():
        say(reason)
    is_resized = processor is not None and (task.whole_images or config.image_size is not None)
    if is_resized and measured.is_for_other_sizes(config.image_size):
        say(f"images have another size, which may need another threshold than {measured.threshold}")
    run = _Run(task, config, Processes.of(accelerator), progress)
    found: dict[str, list[Scores]] = {}
    for name, row in measured.rows.items():
        found[name] = []
        for each in run.measure(name, row, processor, test_images, train_images):
            found.setdefault(each.row or name, []).append(each)
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
        figures=tuple(
            paired_figures(
                found,
                resamples=config.resamples,
                confidence=config.confidence,
                seed=config.seed,
                hub_metrics=getattr(task, "hub_metrics", {}),
            )
        ),
        versions={name: importlib.metadata.version(name) for name in ("torch", "transformers", "ttreg_hf")},
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        whole_split=run.saw_all,
        threshold=measured.threshold,
        left_out=measured.left_out,
    )


class _Run:
    """One task over all rows."""

    def __init__(self, task: Task, config: EvaluationConfig, processes: Processes, progress: Progress) -> None:
        self._task, self._config, self._processes, self._progress = task, config, processes, progress
        self._decoders = DecodingWorkers()
        self.bad_images: list[str] = []
        self.num_training_images = 0
        self.saw_all = False

    def measure(
        self, name: str, row: Row, processor: Any, test: LabelledImages, train: LabelledImages | None
    ) -> list[Scores]:
        """A row's scores, of all processes' images."""
        config = self._config
        if self._task.whole_images or config.image_size is not None:
            processor = whole_image(row.tower, processor, config.image_size)
        tests = self._batches(test, row, processor, config.num_images, name)
        learned = None
        if train is not None:
            learned = self._batches(train, row, processor, config.num_training_images, f"{name}, training")
        scores = self._task.scores(row, tests, learned)
        self.bad_images = self._unreadable(tests) + (self._unreadable(learned) if learned else [])
        record = tests.batches.read_by_all()
        ended = record.end < config.num_images if test.size is None else record.end == test.size
        self.saw_all = ended and not record.bad_images
        if learned is not None:
            ends = self._processes.collect([learned.batches.record.end])
            self.num_training_images = max(ends)
        return scores

    def _batches(
        self, images: LabelledImages, row: Row, processor: Any, num_images: int, stage: str
    ) -> LabelledBatches:
        config, world = self._config, self._processes.world
        batches = ImageBatches(
            images.source(self._processes),
            processor,
            num_images=num_images if images.size is None else min(num_images, images.size),
            batch_size=1 if config.image_size == ORIGINAL else config.batch_size,
            device=row.model.device,
            processes=self._processes,
            workers=decode_workers(row.model.device, world) if config.workers is None else config.workers,
            max_bad_share=config.max_bad_share,
            channels=row.tower.num_channels,
            decoders=self._decoders,
        )
        batches.check_same_images()
        return LabelledBatches(images, batches, self._progress, stage)

    def _unreadable(self, images: LabelledBatches) -> list[str]:
        return [bad.key for bad in images.batches.read_by_all().bad_images.values()]


def _calibration_of(model: Any, model_or_id: Any, register_neurons: Any) -> CalibrationResult | None:
    """What comes with the neurons, or lies beside a checkpoint whose own neurons are measured."""
    if isinstance(register_neurons, CalibrationResult):
        return register_neurons
    is_named = register_neurons is None and isinstance(model_or_id, (str, Path))
    return calibration_beside(model, model_or_id) if is_named else None


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
