"""Dense tasks of a model in which artifacts were grown: before growing, grown, patched, controls, mended by hand."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from benchmarks.grown_judging import models_of
from benchmarks.grown_table import left_out_words
from ttreg_hf.calibration.calibration_result import CalibrationResult
from ttreg_hf.evaluation.evaluation_config import EvaluationConfig
from ttreg_hf.evaluation.evaluation_result import EXPLORATORY, PRIMARY, Evaluation, Figure
from ttreg_hf.evaluation.evaluation_run import evaluate
from ttreg_hf.evaluation.rows import BASE, CONSTANT, INTERPOLATED, MASKED, PATCHED, RANDOM, ZEROED
from ttreg_hf.measuring.intervals import Interval
from ttreg_hf.report.table import Table, markdown

ORIGINAL, GROWN = "before growing", "grown"
TASKS = ("segmentation-probe", "object-discovery", "segmentation")
COLUMNS = {BASE: GROWN} | {row: row for row in (PATCHED, CONSTANT, ZEROED, RANDOM, INTERPOLATED, MASKED)}
CAPTION = (
    "The artifacts were trained in by this project. The figures show whether what growing changed comes back, never "
    "that patching helps a model that was trained elsewhere."
)
LEGEND = (
    "In percent, with 95 % intervals over images. Interpolated and masked are done by hand to the grown model, "
    "without a register; the last columns say whether patching does better, on the same images."
)
NAMED = {
    PRIMARY: "Primary endpoints, named beforehand: linear segmentation, and LOST by keys of the last layer, bias 0.",
    EXPLORATORY: "Exploratory: everything else that was measured; none was picked.",
}


def dense_tasks(
    original: PreTrainedModel, grown: PreTrainedModel, result: CalibrationResult, composites: Path, processor: Any
) -> dict[str, list[dict[str, Any]]]:
    """All tasks on composites with exact masks, at the size that was calibrated at, as JSON takes them.

    Args:
        original: before growing; of it the base row alone.
        grown: of it all rows.
        result: the grown model's calibration.
        composites: folder with `train.parquet` and `test.parquet`.
        processor: of both models.
    """
    import datasets

    splits = {name: datasets.load_dataset("parquet", data_files=str(composites / f"{name}.parquet"), split="train")
              for name in ("train", "test")}  # fmt: skip

    def measured(model: PreTrainedModel, neurons: Any, rows: tuple[str, ...] | None) -> list[dict[str, Any]]:
        config = EvaluationConfig(
            num_images=len(splits["test"]),
            num_training_images=len(splits["train"]),
            image_size=result.image_size[0],
            rows=rows,
            workers=0,  # small images; workers of a process that was started afresh would each begin with its imports
        )
        data: dict[str, Any] = {"train": splits["train"], "processor": processor, "source": "composites"}
        return [
            evaluate(model, splits["test"], task=task, register_neurons=neurons, config=config, **data).to_dict()
            for task in TASKS
        ]

    left_out = models_of(grown, result)[1]
    of_grown = [each | {"left_out": each["left_out"] | left_out} for each in measured(grown, result, None)]
    return {ORIGINAL: measured(original, result.register_neurons, ()), GROWN: of_grown}


def dense_tables(found: Mapping[str, Path]) -> str:
    """Tables as Markdown, the primary endpoints first, with what they do not show.

    Args:
        found: files with what `dense_tasks` gave, by what the model is called.
    """
    heads = ("model", "endpoint", ORIGINAL, *COLUMNS.values(), "patched minus interpolated", "patched minus masked")
    lines: dict[str, list[tuple[str, ...]]] = {PRIMARY: [], EXPLORATORY: []}
    left_out: dict[str, None] = {}
    for model, file in found.items():
        kept = json.loads(file.read_text(encoding="utf-8"))
        for before, after in zip(kept[ORIGINAL], kept[GROWN], strict=True):
            for kind, line in _lines(Evaluation.from_dict(before), Evaluation.from_dict(after)):
                lines[kind].append((model, *line))
            left_out |= dict.fromkeys(left_out_words(model, after["left_out"]))
    parts = [f"{NAMED[kind]} {CAPTION}\n\n{markdown(Table(heads, tuple(lines[kind])))}\n" for kind in lines]
    return "\n".join([*parts, LEGEND, *left_out]) + "\n"


def _lines(before: Evaluation, after: Evaluation) -> Iterable[tuple[str, Sequence[str]]]:
    """Sort of endpoint, and cells, of each figure."""
    originals = {label: rows[BASE] for label, rows in before.by_label()}
    for label, rows in after.by_label():
        cells = [_cell(rows.get(row), "left out") for row in COLUMNS]
        minus = [_cell(rows[row].patched_minus if row in rows else None, "") for row in (INTERPOLATED, MASKED)]
        yield rows[BASE].endpoint, (f"{after.task}: {label}", _cell(originals.get(label), ""), *cells, *minus)


def _cell(found: Figure | Interval | None, nothing: str) -> str:
    if found is None:
        return nothing
    bounds = "" if found.low is None or found.high is None else f" ({100 * found.low:.1f} to {100 * found.high:.1f})"
    return f"{100 * found.value:.1f}{bounds}"
