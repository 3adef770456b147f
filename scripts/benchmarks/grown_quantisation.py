"""Quantisation of a grown model: its rows and simulated schemes, held against the best baseline.

Letters: `U` photographs, `C` columns.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from benchmarks.grown_dense_tasks import GROWN
from benchmarks.grown_job import Job
from benchmarks.grown_judging import models_of
from benchmarks.grown_photographs import crops_to_calibrate, crops_to_report
from benchmarks.grown_table import interval_cell, left_out_words
from ttreg_hf.calibration.calibration_result import CalibrationResult
from ttreg_hf.evaluation.evaluation_config import EvaluationConfig
from ttreg_hf.evaluation.evaluation_result import Evaluation, Figure
from ttreg_hf.evaluation.evaluation_run import evaluate
from ttreg_hf.evaluation.quantisation import (
    ORDINARY,
    OWN_PATCHES,
    OWN_POOLED,
    POOLED,
    UNQUANTISED,
    QuantisationErrors,
)
from ttreg_hf.evaluation.quantisation_scheme import SCHEMES
from ttreg_hf.evaluation.rows import BASE, CONSTANT, KEPT, PATCHED, RANDOM, ZEROED
from ttreg_hf.evaluation.scores import Scores
from ttreg_hf.report.quantisation_words import against_best_baseline, by_setting, quantisation_words
from ttreg_hf.report.table import Table, markdown

SIMULATED = tuple(name for name, scheme in SCHEMES.items() if scheme.is_simulated)
CROPS_OF_EACH = 4  # photograph to report on
NUM_CALIBRATION_IMAGES = 64
COLUMNS = {BASE: GROWN, KEPT: f"{GROWN}, worst layers in 16 bit", PATCHED: PATCHED, CONSTANT: CONSTANT,
           ZEROED: ZEROED, RANDOM: RANDOM}  # fmt: skip
CAPTION = (
    "The artifacts were trained in by this project: where patching helps to quantise these models, no benefit on "
    "natural ones is shown."
)
PRIMARY = (POOLED, ORDINARY)
LEGEND = (
    "With 95 % intervals over photographs that nothing else has seen. Ordinary patches are no outliers in the grown "
    "model. Better: than the best of the grown model and the controls, with intervals that do not meet."
)


@dataclass(frozen=True)
class ErrorsOfPhotographs(QuantisationErrors):
    """The same errors, one value a photograph: its crops are drawn together, so that intervals are over photographs.

    Args:
        photographs: of each image, by its place.
    """

    photographs: tuple[int, ...] = ()

    def scores(self, row: Any, test: Any, train: Any) -> list[Scores]:
        """As in `QuantisationErrors`."""
        return [self._merged(each) for each in super().scores(row, test, train)]

    def _merged(self, scores: Scores) -> Scores:
        photographs, index = np.unique([self.photographs[place] for place in scores.places], return_inverse=True)
        parts = []
        for values_BC in (scores.numerators_BC, scores.denominators_BC):
            sums_UC = np.zeros((len(photographs), values_BC.shape[1]))
            np.add.at(sums_UC, index, values_BC)
            parts.append(sums_UC)
        places = tuple(photographs.tolist())
        return dataclasses.replace(scores, places=places, numerators_BC=parts[0], denominators_BC=parts[1])


def quantisation(
    job: Job, original: PreTrainedModel, grown: PreTrainedModel, result: CalibrationResult
) -> dict[str, Any]:
    """The task `quantisation` at the size that was calibrated at, as JSON takes it; nothing where nothing is moved.

    Args:
        job: photographs, size and seed.
        original: not looked at: what is quantised is the grown model.
        grown: of it all rows.
        result: its calibration.
    """
    left_out = models_of(grown, result)[1]
    if not result.register_neurons:
        return {"left_out": left_out, "evaluation": None}
    size = job.variant.image_size
    report = crops_to_report(job.photographs, size, each=CROPS_OF_EACH)
    train = crops_to_calibrate(job.photographs, size, min(NUM_CALIBRATION_IMAGES, job.num_images), seed=job.seed)
    task: Any = ErrorsOfPhotographs(
        schemes=SIMULATED,
        num_calibration_images=len(train.pixels),
        detection_layer=result.outlier_rule.detection_layer,
        norm_threshold=result.outlier_rule.norm_threshold,
        photographs=tuple(report.photographs.tolist()),
    )
    found = evaluate(
        grown,
        [{"image": image} for image in report.pixels],
        task=task,
        train=[{"image": image} for image in train.pixels],
        config=EvaluationConfig(num_images=len(report.pixels), num_training_images=len(train.pixels), workers=0),
        register_neurons=result,
        source="crops of photographs",
    )
    return {"left_out": left_out, "evaluation": found.to_dict()}


def quantisation_tables(found: Mapping[str, Path]) -> str:
    """As Markdown, the primary figures first, with what they do not show.

    Args:
        found: files with what `quantisation` gave, by what the model is called.
    """
    lines: dict[str, list[tuple[str, ...]]] = {metric: [] for metric in (*PRIMARY, OWN_POOLED, OWN_PATCHES)}
    words: dict[str, None] = {}
    for model, file in found.items():
        kept = json.loads(file.read_text(encoding="utf-8"))
        words |= dict.fromkeys(left_out_words(model, kept["left_out"]))
        if kept["evaluation"] is None:
            continue
        evaluation = Evaluation.from_dict(kept["evaluation"])
        words[quantisation_words(evaluation)[0]] = None
        for metric, of_metric in lines.items():
            of_metric += [(model, *_cells(metric, *each)) for each in by_setting(evaluation, metric)]
    parts = [_of_metric(metric, of_metric) for metric, of_metric in lines.items()]
    return "\n\n".join([CAPTION, *parts, LEGEND, *words]) + "\n"


def _of_metric(metric: str, lines: Sequence[tuple[str, ...]]) -> str:
    """A metric's table, and what sort of figure it is."""
    sort = "Primary, to the unquantised grown model" if metric in PRIMARY else "Secondary"
    judged = ("patched better?", "constant better?") if metric in PRIMARY else ()
    table = Table(("model", "scheme", *COLUMNS.values(), *judged), tuple(lines))
    return f"{sort}: {metric} (1 - cosine, in percent).\n\n{markdown(table)}"


def _cells(metric: str, scheme: str, figures: Mapping[str, Figure]) -> tuple[str, ...]:
    cells = tuple(_cell(figures.get(row)) for row in COLUMNS)
    judged = (PATCHED, CONSTANT) if metric in PRIMARY else ()
    return (scheme, *cells, *(_better(row, scheme, figures) for row in judged))


def _better(row: str, scheme: str, figures: Mapping[str, Figure]) -> str:
    return against_best_baseline(row, figures)[1] if row in figures and scheme != UNQUANTISED else ""


def _cell(figure: Figure | None) -> str:
    if figure is None:
        return "left out"
    values = (figure.value, figure.low, figure.high)
    return interval_cell([100 * value for value in values if value is not None], ".2g")
