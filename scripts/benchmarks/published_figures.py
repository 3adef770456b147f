"""What a run on a known checkpoint found, judged by what was published about it: rows of a table, `PASS` or `FAIL`."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from ttreg_hf.calibration.calibration_result import CalibrationResult
from ttreg_hf.calibration.comparison import Comparison
from ttreg_hf.calibration.config import GateConfig
from ttreg_hf.known.known_checkpoint import Expectation, KnownCheckpoint
from ttreg_hf.measuring.neuron_scores import rank_neurons
from ttreg_hf.measuring.norms import NormReport

PASS, FAIL = "PASS", "FAIL"
GATE_SOURCE = "this project's gate, provisional (`GateConfig`)"


@dataclass(frozen=True)
class Row:
    """One figure, measured and judged.

    Args:
        quantity: what was measured.
        measured: the value; `None` where there is none, which fails.
        expected: the published figure and what passes, in words.
        status: `PASS` or `FAIL`.
        source: of the expectation.
    """

    quantity: str
    measured: float | str | None
    expected: str
    status: str
    source: str


def judge(expectation: Expectation, known: KnownCheckpoint, result: CalibrationResult) -> Row:
    """The row of one expectation; a figure that cannot be measured fails."""
    measured = _MEASURED[expectation.quantity](expectation, known, result)
    low, high = expectation.at_least, expectation.at_most
    passed = measured is not None and (low is None or measured >= low) and (high is None or measured <= high)
    name = expectation.quantity.replace("_", " ")
    if expectation.layer is not None:
        name += f", block {expectation.layer}"
    if expectation.neuron is not None:
        name += " of {}/{}".format(*expectation.neuron)
    return Row(name, measured, _expected(expectation.published, low, high), status_of(passed), expectation.source)


def gate_rows(whose: str, comparison: Comparison | None, gate: GateConfig, source: str) -> list[Row]:
    """The rows of a patched model, `None` if there is none, against the gate's two bounds."""
    ratio = comparison.outlier_ratio if comparison else None
    similarity = comparison.feature_similarity if comparison else None
    source = source if source == GATE_SOURCE else f"neurons: {source}; bounds: {GATE_SOURCE}"
    return [
        Row(
            f"outliers after / before, patched with {whose}",
            ratio,
            _expected(None, None, gate.max_outlier_ratio),
            status_of(ratio is not None and ratio <= gate.max_outlier_ratio),
            source,
        ),
        Row(
            f"cosine of the pooled feature, patched with {whose}",
            similarity,
            _expected(None, 1 - gate.max_drift, None),
            status_of(similarity is not None and 1 - similarity <= gate.max_drift),
            source,
        ),
    ]


def _ranking(result: CalibrationResult) -> list[tuple[int, int]]:
    ranked = rank_neurons(
        result.scores,
        first_layer=result.config.first_layer or 0,
        last_layer=len(result.scores) - 1 if result.config.last_layer is None else result.config.last_layer,
        top_k=result.scores.numel(),
    )
    return [(neuron.layer, neuron.neuron) for neuron in ranked]


def _rank(expectation: Expectation, known: KnownCheckpoint, result: CalibrationResult) -> float | None:
    ranking = _ranking(result)
    return ranking.index(expectation.neuron) + 1 if expectation.neuron in ranking else None


def _score_ratio(expectation: Expectation, known: KnownCheckpoint, result: CalibrationResult) -> float | None:
    first, second = result.scores.flatten().topk(2).values.tolist()
    return first / second if second > 0 else None


def _share_found(factor: int) -> Callable[[Expectation, KnownCheckpoint, CalibrationResult], float | None]:
    def share(expectation: Expectation, known: KnownCheckpoint, result: CalibrationResult) -> float | None:
        published = set(known.register_neurons or ())
        found = published & set(_ranking(result)[: factor * len(published)])
        return len(found) / len(published) if published else None

    return share


def _of_block(value: Callable[[NormReport, int], float]) -> Callable[..., float | None]:
    return lambda expectation, known, result: value(result.norms, expectation.layer)


_MEASURED: dict[str, Callable[[Expectation, KnownCheckpoint, CalibrationResult], float | None]] = {
    "norm_median": _of_block(lambda norms, layer: norms.median[layer]),
    "norm_max": _of_block(lambda norms, layer: norms.max[layer]),
    "paper_threshold": _of_block(lambda norms, layer: norms.mean[layer] + 3 * norms.std[layer]),
    "first_outlier_layer": lambda expectation, known, result: result.norms.first_outlier_layer,
    "rank": _rank,
    "score_ratio": _score_ratio,
    "published_in_top_k": _share_found(1),
    "published_in_top_2k": _share_found(2),
}


def _expected(published: float | None, low: float | None, high: float | None) -> str:
    bounds = " and ".join(
        f"{words} {as_text(bound)}" for words, bound in (("at least", low), ("at most", high)) if bound is not None
    )
    return bounds if published is None else f"{as_text(published)}, {bounds}"


def as_text(value: float | str | None) -> str:
    """Four digits; a word stays a word."""
    if value is None or isinstance(value, str):
        return value or "none"
    return f"{value:.4g}" if math.isfinite(value) else str(value)


def status_of(passed: bool) -> str:
    """`PASS` or `FAIL`."""
    return PASS if passed else FAIL
