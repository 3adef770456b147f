"""An evaluation as a table, and as the metrics of a model card; the paper's figures beside it as the paper's."""

from huggingface_hub import EvalResult

from ttreg_hf.evaluation.evaluation_result import PRIMARY, Evaluation, Figure
from ttreg_hf.evaluation.rows import BASE, PATCHED, TRAINED
from ttreg_hf.evaluation.scores import ERROR
from ttreg_hf.known.checkpoints import known_checkpoint
from ttreg_hf.measuring.intervals import MIN_PHOTOGRAPHS, Interval
from ttreg_hf.report.table import Table


def evaluation_table(evaluation: Evaluation) -> Table:
    """One line a metric and row, in percent; below them the paper's figures for this task and base model."""
    columns = ("metric, %", "model", "value", f"{100 * evaluation.confidence:g} % interval", "minus base")
    lines = []
    for label, figures in evaluation.by_label():
        for count, (row, figure) in enumerate(figures.items()):
            lines.append((label if count == 0 else "", row, *_cells(figure)))
    return Table(columns, tuple(lines + _reported_lines(evaluation)))


def card_results(evaluation: Evaluation) -> list[EvalResult]:
    """What the patched model reached, as a model card's metadata has it: the metrics that the Hub has a name for.

    They can be compared with those of other models only where the data are the same: a whole split of a data set on
    the Hub, at a revision. Of anything else there are none.
    """
    source = evaluation.source
    is_comparable = source.repo_id and source.revision and source.split and evaluation.whole_split
    if evaluation.hub_task is None or not is_comparable:
        return []
    return [
        EvalResult(
            task_type=evaluation.hub_task,
            dataset_type=str(source.repo_id),
            dataset_name=str(source),
            dataset_split=source.split,
            dataset_config=source.config,
            dataset_revision=source.revision,
            metric_type=figure.hub_metric,
            metric_name=f"{evaluation.task}: {figure.label}",
            metric_value=round(100 * figure.value, 2),
        )
        for figure in evaluation.figures
        if figure.row == PATCHED and figure.hub_metric is not None
    ]


def endpoint_sentence(evaluation: Evaluation) -> str:
    """Which endpoint is primary, and on it the patched model against each other row."""
    primary = [figure for figure in evaluation.figures if figure.endpoint == PRIMARY]
    if not primary:
        return "No figure here is a primary endpoint: all are exploratory, which is to say hints."
    against = [f"{each.row} {_difference(each.patched_minus)}" for each in primary if each.patched_minus is not None]
    base = [f"base {_difference(each.difference)}" for each in primary if each.row == PATCHED]
    differences = f" patched minus {', '.join(base + against)}." if base else ""
    return f"{primary[0].label}:{differences} It was named beforehand; all else is exploratory, which is to say hints."


def _cells(figure: Figure) -> tuple[str, str, str]:
    form = ".3g" if figure.metric.startswith(ERROR) else ".1f"
    return f"{100 * figure.value:{form}}", _bounds(figure, form), _difference(figure.difference, form)


def _difference(found: Interval | None, form: str = ".1f") -> str:
    return "" if found is None else f"{100 * found.value:+{form}} ({_bounds(found, f'+{form}')})"


def _bounds(found: Figure | Interval, form: str) -> str:
    if found.low is None or found.high is None:
        return f"fewer than {MIN_PHOTOGRAPHS} images"
    return f"{100 * found.low:{form}} to {100 * found.high:{form}}"


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
