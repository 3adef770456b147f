"""An evaluation as a table, and as the metrics of a model card; the paper's figures beside it as the paper's."""

import re

from huggingface_hub import EvalResult

from ttreg_hf.evaluation.result import Evaluation, Figure
from ttreg_hf.evaluation.rows import BASE, PATCHED, TRAINED
from ttreg_hf.hub_names import dataset_id
from ttreg_hf.known_checkpoints import known_checkpoint

_HUB_TASKS = {
    "object-discovery": "object-detection",
    "segmentation": "image-segmentation",
    "segmentation-probe": "image-segmentation",
    "zero-shot": "zero-shot-image-classification",
}
_HUB_METRICS = {
    "CorLoc": "corloc",
    "mIoU": "mean_iou",
    "pixel accuracy": "pixel_accuracy",
    "mAP": "average_precision",
    "top-1": "accuracy",
}


def table_header(evaluation: Evaluation) -> tuple[str, ...]:
    """Names of the columns."""
    return ("metric, %", "model", "value", f"{100 * evaluation.confidence:g} % interval", "minus base")


def table_lines(evaluation: Evaluation) -> list[tuple[str, ...]]:
    """One line a metric and row, in percent; below them the paper's figures for this task and base model."""
    lines = []
    for label, figures in evaluation.by_label():
        for place, (row, figure) in enumerate(figures.items()):
            lines.append((label if place == 0 else "", row, *_cells(figure)))
    return lines + _reported_lines(evaluation)


def markdown_table(evaluation: Evaluation) -> str:
    """The same as Markdown."""
    header = table_header(evaluation)
    lines = [header, ("---",) * len(header), *table_lines(evaluation)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def card_results(evaluation: Evaluation) -> list[EvalResult]:
    """What the patched model reached, as a model card's metadata has it."""
    return [
        EvalResult(
            task_type=_HUB_TASKS.get(evaluation.task, "image-classification"),
            dataset_type=dataset_id(evaluation.dataset) or evaluation.dataset,
            dataset_name=evaluation.dataset,
            dataset_split=_split_of(evaluation.dataset),
            metric_type=_HUB_METRICS[figure.metric],
            metric_name=f"{evaluation.task}: {figure.label}",
            metric_value=round(100 * figure.value, 2),
        )
        for figure in evaluation.figures
        if figure.row == PATCHED
    ]


def _split_of(dataset: str) -> str | None:
    found = re.search(r" \(([^()]+)\)$", dataset)
    return found[1] if found else None


def _cells(figure: Figure) -> tuple[str, str, str]:
    difference = figure.difference
    return (
        f"{100 * figure.value:.1f}",
        f"{100 * figure.low:.1f} to {100 * figure.high:.1f}",
        ""
        if difference is None
        else f"{100 * difference.value:+.1f} ({100 * difference.low:+.1f} to {100 * difference.high:+.1f})",
    )


def _reported_lines(evaluation: Evaluation) -> list[tuple[str, ...]]:
    known = known_checkpoint(evaluation.base_model or "")
    lines: list[tuple[str, ...]] = []
    for reported in known.reported if known else ():
        if reported.task == evaluation.task:
            label = f"{reported.metric} on {reported.dataset}, as {reported.source} reports it"
            values = {BASE: reported.base, PATCHED: reported.patched, TRAINED: reported.trained_registers}
            for row, value in values.items():
                if value is not None:
                    lines.append((label if row == BASE else "", row, f"{value:g}", "", ""))
    return lines
