"""Constant mode of a grown model: beside the token, its controls, and at another size than its rows were measured at.

Letters: `B` crops, `L` blocks, `l` first block that reads a row, `D` channels.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.grown_dense_tasks import GROWN
from benchmarks.grown_job import Job
from benchmarks.grown_judging import RESULT_FILE, batches_of, models_of, rows_of
from benchmarks.grown_photographs import crops_to_calibrate, crops_to_report
from benchmarks.grown_table import interval_cell, left_out_words
from ttreg_hf.calibration.calibration_result import CalibrationResult
from ttreg_hf.calibration.constant_mode import CONSTANT as CONSTANTS
from ttreg_hf.calibration.constant_mode import RANDOM as RANDOM_ROWS
from ttreg_hf.calibration.constant_mode import ZEROED as NO_ROW
from ttreg_hf.calibration.constant_mode import ConstantMode
from ttreg_hf.evaluation.constant_row import in_constant_mode
from ttreg_hf.evaluation.rows import BASE, CONSTANT, PATCHED
from ttreg_hf.measuring.register_rows import rows_of as register_rows_of
from ttreg_hf.measuring.tower import VisionTower
from ttreg_hf.records import from_json
from ttreg_hf.report.constant_table import constant_table
from ttreg_hf.report.table import Table, markdown

OF_THIS_SIZE = f"{CONSTANT}, rows of this size"
NUM_IMAGES = 64  # that rows are means over, as in a calibration
CAPTION = (
    "The artifacts were trained in by this project. The figures show whether constant mode does what the token does, "
    "never that either helps a model that was trained elsewhere."
)
LEGEND = (
    "On photographs that nothing else has seen, with 95 % intervals over them. Outliers by the rule that was "
    "calibrated at the size of growing, at both sizes. Norm: largest of a patch over the median of its block, "
    "worst block. Drift and distance: 1 - cosine of the final hidden states, drift to the grown model, distance to "
    f"the one before growing. {OF_THIS_SIZE}: the same neurons and first block, means over as many crops at that size."
)
LEGEND_OF_CONTROLS = (
    "From the calibration: on photographs that chose neither neurons nor rows; drift to the grown model. The controls "
    "are those of constant mode."
)
_HEADS = ("outliers / grown", "norm", "drift: CLS", "drift: ordinary patches", "distance: CLS",
          "distance: ordinary patches", "distance: outlier patches")  # fmt: skip


def constants(
    job: Job, original: PreTrainedModel, grown: PreTrainedModel, result: CalibrationResult
) -> dict[str, Any]:
    """What the calibration verified of constant mode, and rows at the variant's other size, as JSON takes them."""
    models, left_out = models_of(grown, result)
    size, rows = job.variant.other_size, []
    if result.register_neurons:
        shown = {name: models[name] for name in (BASE, PATCHED, CONSTANT) if name in models}
        if result.constant_mode is not None and not left_out:
            rows_LD = _rows_of_size(job, models[PATCHED], size)[result.constant_mode.first_layer :]
            shown[OF_THIS_SIZE] = in_constant_mode(models[PATCHED], rows_LD)
        report = crops_to_report(job.photographs, size)
        rows = [dataclasses.asdict(row) for row in rows_of(original, shown, result, report)]
    verified = None if result.constant_mode is None else dataclasses.asdict(result.constant_mode)
    sizes = {"calibrated_size": job.variant.image_size, "other_size": size}
    return {"left_out": left_out, "verified": verified, **sizes, "rows": rows}


def _rows_of_size(job: Job, patched: PreTrainedModel, size: int) -> Tensor:
    """What attentions read of the register, mean over crops to calibrate, `(L, D)` float32."""
    crops = crops_to_calibrate(job.photographs, size, min(NUM_IMAGES, job.num_images), seed=job.seed)
    found = register_rows_of(VisionTower.to_measure(patched), batches_of(crops, patched))
    return found.registers_BLD.mean(0).float()  # (B, L, D) -> (L, D)


def constant_tables(found: Mapping[str, Path]) -> str:
    """As Markdown: both sizes, the controls, and whether what was asked of constant mode holds.

    Args:
        found: files with what `constants` gave, each beside its judgement, by what the model is called.
    """
    lines: list[tuple[str, ...]] = []
    controls: list[tuple[str, ...]] = []
    words: list[str] = []
    for model, file in found.items():
        kept = json.loads(file.read_text(encoding="utf-8"))
        judged = json.loads(file.with_name(RESULT_FILE).read_text(encoding="utf-8"))["rows"]
        lines += _lines(model, kept["calibrated_size"], judged)
        lines += _lines(model, kept["other_size"], kept["rows"])
        words += left_out_words(model, kept["left_out"])
        if kept["verified"] is not None:
            verified = from_json(ConstantMode, kept["verified"])
            controls += [(model, *line) for line in constant_table(verified).rows]
            words.append(f"{model}: {_holds({row['model']: row for row in judged}, verified)}")
    heads = ("drift, pooled", "drift, ordinary patches")
    both = Table(("model", "px", "row", *_HEADS), tuple(lines))
    parts = [CAPTION, markdown(both), LEGEND]
    if controls:
        held_against = Table(("model", "way", "outliers after / before", *heads), tuple(controls))
        parts += [markdown(held_against), LEGEND_OF_CONTROLS]
    return "\n\n".join([*parts, *words]) + "\n"


def _lines(model: str, size: int, rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    for row in rows:
        drifts, distances = row["drifts"], row["distances"]
        cells = (drifts["CLS"], drifts["ordinary patches"], *distances.values())
        shown = (interval_cell(row["outlier_ratio"], ".2f"), f"{row['largest_norm']:.1f}")
        name = GROWN if row["model"] == BASE else row["model"]
        yield (model, str(size), name, *shown, *(interval_cell(each, ".2g") for each in cells))


def _holds(rows: Mapping[str, Mapping[str, Any]], verified: ConstantMode) -> str:
    """What was asked of constant mode beforehand, with what was measured."""
    if CONSTANT not in rows:
        return "constant mode was not measured."
    token, constant = (rows[name]["drifts"]["ordinary patches"][0] for name in (PATCHED, CONSTANT))
    norms = (f"{rows[name]['largest_norm']:.1f}" for name in (BASE, PATCHED, CONSTANT))
    pooled = {name: effect.drift.pooled for name, effect in verified.effects.items()}
    are_worse = min(pooled[NO_ROW], pooled[RANDOM_ROWS]) > pooled[CONSTANTS]
    gate = "its conditions hold" if verified.passed else f"not advised: {' '.join(verified.reasons)}"
    return (
        f"ordinary patches drift {constant:.2g} in constant mode, {token:.2g} with the token: "
        f"{'at most' if constant <= token else 'more than'} the token's. Largest norm over the median, worst block: "
        "grown {}, token {}, constant mode {}. ".format(*norms)
        + f"Pooled feature: {pooled[CONSTANTS]:.2g}, without any row {pooled[NO_ROW]:.2g}, with random rows "
        f"{pooled[RANDOM_ROWS]:.2g}: both {'worse' if are_worse else 'not worse'}. In the calibration {gate}"
        + ("." if verified.passed else "")
    )
