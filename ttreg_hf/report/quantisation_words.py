"""What an evaluation of quantised models says in sentences: only what beats the best baseline is claimed."""

from collections.abc import Iterator, Mapping

from ttreg_hf.evaluation.evaluation_result import Evaluation, Figure
from ttreg_hf.evaluation.quantisation import ORDINARY, POOLED, UNQUANTISED, QuantisationErrors
from ttreg_hf.evaluation.quantisation_scheme import SCHEMES
from ttreg_hf.evaluation.rows import PATCHED, TRAINED


def quantisation_words(evaluation: Evaluation) -> list[str]:
    """One sentence a primary figure and scheme, and which schemes were simulated; nothing of another task."""
    if evaluation.task != QuantisationErrors.name:
        return []
    settings = list(dict.fromkeys(each.setting for each in evaluation.figures if each.setting in SCHEMES))
    simulated = [name for name in settings if SCHEMES[name].is_simulated]
    kernels = [name for name in settings if not SCHEMES[name].is_simulated]
    listed = ("; ".join(names) or "none" for names in (simulated, kernels))
    words = ["Simulated, by rounding: {}. By torchao's kernels: {}.".format(*listed)]
    for metric in (POOLED, ORDINARY):
        words += [
            _sentence(metric, label, figures)
            for label, figures in _by_setting(evaluation, metric)
            if label != UNQUANTISED and PATCHED in figures
        ]
    return words


def _by_setting(evaluation: Evaluation, metric: str) -> Iterator[tuple[str, dict[str, Figure]]]:
    of_metric = [each for each in evaluation.figures if each.metric == metric]
    for setting in dict.fromkeys(each.setting for each in of_metric):
        yield setting, {each.row: each for each in of_metric if each.setting == setting}


def _sentence(metric: str, scheme: str, figures: Mapping[str, Figure]) -> str:
    """Whether the patched model beats the best of the others, with intervals that do not meet."""
    ours = figures[PATCHED]
    best = min((each for row, each in figures.items() if row not in (PATCHED, TRAINED)), key=lambda each: each.value)
    percents = f"patched {100 * ours.value:.3g} %, best baseline {100 * best.value:.3g} % ({best.row})"
    numbers = f"{metric}, {scheme}: {percents}"
    if ours.value >= best.value:
        return f"{numbers}: patching does not help here."
    if ours.high is None or best.low is None or ours.high >= best.low:
        return f"{numbers}: lower, but the intervals meet, so nothing is shown."
    return f"{numbers}: patching is better."
