"""What an evaluation of quantised models says in sentences: only what beats the best baseline is claimed."""

from collections.abc import Iterator, Mapping

from ttreg_hf.evaluation.evaluation_result import Evaluation, Figure
from ttreg_hf.evaluation.quantisation import ORDINARY, POOLED, UNQUANTISED, QuantisationErrors
from ttreg_hf.evaluation.quantisation_scheme import SCHEMES
from ttreg_hf.evaluation.rows import CONSTANT, PATCHED, TRAINED

_OURS = {PATCHED: "patching", CONSTANT: "constant mode"}


def quantisation_words(evaluation: Evaluation) -> list[str]:
    """One sentence a primary figure, scheme and row of ours, and what was simulated; nothing of other tasks."""
    if evaluation.task != QuantisationErrors.name:
        return []
    settings = list(dict.fromkeys(each.setting for each in evaluation.figures if each.setting in SCHEMES))
    simulated = [name for name in settings if SCHEMES[name].is_simulated]
    kernels = [name for name in settings if not SCHEMES[name].is_simulated]
    listed = ("; ".join(names) or "none" for names in (simulated, kernels))
    words = ["Simulated, by rounding: {}. By torchao's kernels: {}.".format(*listed)]
    for metric in (POOLED, ORDINARY):
        for scheme, figures in by_setting(evaluation, metric):
            ours = [row for row in _OURS if row in figures and scheme != UNQUANTISED]
            words += [_sentence(f"{metric}, {scheme}", row, figures) for row in ours]
    return words


def against_best_baseline(row: str, figures: Mapping[str, Figure]) -> tuple[Figure, str]:
    """The best baseline, which is neither row of ours nor another model, and whether one of ours beats it.

    Args:
        row: of ours: patched, or in constant mode.
        figures: of one metric and scheme, by row.
    """
    ours = figures[row]
    baselines = (each for name, each in figures.items() if name not in (*_OURS, TRAINED))
    best = min(baselines, key=lambda each: each.value)
    if ours.value >= best.value:
        return best, f"{_OURS[row]} does not help here"
    if ours.high is None or best.low is None or ours.high >= best.low:
        return best, "lower, but the intervals meet, so nothing is shown"
    return best, f"{_OURS[row]} is better"


def by_setting(evaluation: Evaluation, metric: str) -> Iterator[tuple[str, dict[str, Figure]]]:
    """Setting -> row -> figure, of one metric."""
    of_metric = [each for each in evaluation.figures if each.metric == metric]
    for setting in dict.fromkeys(each.setting for each in of_metric):
        yield setting, {each.row: each for each in of_metric if each.setting == setting}


def _sentence(label: str, row: str, figures: Mapping[str, Figure]) -> str:
    best, words = against_best_baseline(row, figures)
    percents = f"{row} {100 * figures[row].value:.3g} %, best baseline {100 * best.value:.3g} % ({best.row})"
    return f"{label}: {percents}: {words}."
