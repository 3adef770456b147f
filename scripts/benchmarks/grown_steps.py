"""What is measured of a calibrated model: each step is kept in a file, and shown in a table of all models."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from benchmarks.grown_constants import constant_tables, constants
from benchmarks.grown_dense_tasks import dense_tables, dense_tasks
from benchmarks.grown_job import Job
from benchmarks.grown_quantisation import quantisation, quantisation_tables
from ttreg_hf.calibration.calibration_result import CalibrationResult
from ttreg_hf.loading import load_processor
from ttreg_hf.writing import write_file

Measured = Callable[[Job, PreTrainedModel, PreTrainedModel, CalibrationResult], dict[str, Any] | None]


@dataclass(frozen=True)
class Step:
    """One of them.

    Args:
        name: for people, and of its files.
        measured: from the job, the model before growing, the grown one and its calibration to what JSON takes; `None`:
            it is not wanted of this model.
        tables: from these files, by what the models are called, to Markdown.
    """

    name: str
    measured: Measured
    tables: Callable[[Mapping[str, Path]], str]

    @property
    def file(self) -> str:
        """In the model's folder."""
        return f"{self.name}.json"

    @property
    def table_file(self) -> str:
        """In the folder of all models."""
        return f"{self.name}.md"


def _dense_tasks(
    job: Job, original: PreTrainedModel, grown: PreTrainedModel, result: CalibrationResult
) -> dict[str, Any] | None:
    if job.composites is None or not result.register_neurons:
        return None
    return dense_tasks(original, grown, result, job.composites, load_processor(str(job.base)))


DENSE_TASKS = Step("dense_tasks", _dense_tasks, dense_tables)
CONSTANTS = Step("constants", constants, constant_tables)
QUANTISATION = Step("quantisation", quantisation, quantisation_tables)
STEPS = (CONSTANTS, QUANTISATION, DENSE_TASKS)


def run_steps(job: Job, original: PreTrainedModel, grown: PreTrainedModel, result: CalibrationResult) -> None:
    """Those that are left; one that fails costs only its own rows.

    Raises:
        RuntimeError: when all have been tried, and some failed.
    """
    failed = []
    for step in STEPS:
        if (job.output / step.file).exists():
            continue
        try:
            found = step.measured(job, original, grown, result)
        except Exception as error:  # noqa: BLE001 - whatever a grown model does, the other steps are run
            failed.append(f"{step.name}: {type(error).__name__}: {error}")
            continue
        if found is not None:
            write_file(job.output / step.file, json.dumps(found, indent=2, allow_nan=False).encode())
            job.say(f"{step.name} done")
    if failed:
        raise RuntimeError("; ".join(failed))


def write_tables(jobs: Sequence[Job], output: Path) -> None:
    """Of every step that some model has been through."""
    for step in STEPS:
        found = {job.title: job.output / step.file for job in jobs if (job.output / step.file).exists()}
        if found:
            text = step.tables(found)
            write_file(output / step.table_file, text.encode())
            print(text)
