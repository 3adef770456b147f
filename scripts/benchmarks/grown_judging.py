"""What a calibration makes of a model in which artifacts were grown, held against the model before growing.

Letters: `B` crops, `P` photographs, `N` patches, `T` tokens.
"""

import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.grown_photographs import Crops
from ttreg_hf.applying import add_test_time_registers
from ttreg_hf.calibration.calibration_result import CalibrationResult
from ttreg_hf.calibration.calibration_run import calibrate
from ttreg_hf.calibration.config import CalibrationConfig, RunConfig
from ttreg_hf.calibration.usable_constants import why_no_constants
from ttreg_hf.evaluation.constant_row import constant_row
from ttreg_hf.evaluation.rows import BASE, CONSTANT, ROWS, model_rows
from ttreg_hf.images.batches import ImageBatches
from ttreg_hf.images.data_sets import NamedImages
from ttreg_hf.images.data_source import DataSource
from ttreg_hf.measuring.intervals import interval_of_mean, interval_of_ratio
from ttreg_hf.measuring.measurement import Measurement, measure
from ttreg_hf.measuring.tower import VisionTower

RESULT_FILE = "result.json"
"""Of a judgement, in the folder of its model."""

_BATCH_SIZE = 16


@dataclasses.dataclass(frozen=True)
class Row:
    """One model on the photographs to report on. Intervals are 95 %, over eight or more photographs.

    Args:
        model: which, such as `patched`.
        outlier_ratio: outlier tokens over those of the grown model, with its interval; `None` if that has none.
        distances: 1 - mean cosine to the final hidden states before growing, with its interval, of CLS, of ordinary
            patches and of those that are outliers in the grown model; `None` where there is no such patch.
        drifts: the same to the final hidden states of the grown model. CLS is the pooled feature.
        largest_norm: of a patch, over the median of its block, where that is largest.
    """

    model: str
    outlier_ratio: tuple[float, ...] | None
    distances: dict[str, tuple[float, ...] | None]
    drifts: dict[str, tuple[float, ...] | None]
    largest_norm: float


@dataclasses.dataclass(frozen=True)
class Judgement:
    """One grown model.

    Args:
        variant, seed: of the growing.
        expected: verdicts that are right.
        verdict, reasons: of the calibration.
        layers: found neurons by layer.
        norm_threshold, detection_layer: that it chose.
        outliers_an_image: of the grown model, on the photographs to report on.
        rows: the grown model and what is made of it.
        left_out: rows that there cannot be, and why.
        seconds: of growing and of calibrating.
    """

    variant: str
    seed: int
    expected: tuple[str, ...]
    verdict: str
    reasons: tuple[str, ...]
    layers: dict[str, int]
    norm_threshold: float | None
    detection_layer: int | None
    outliers_an_image: float
    rows: tuple[Row, ...]
    left_out: dict[str, str]
    seconds: dict[str, float]

    @property
    def is_right(self) -> bool:
        return self.verdict in self.expected

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2, allow_nan=False) + "\n"


def calibrated(grown: PreTrainedModel, crops: Crops, folder: Path, *, seed: int) -> tuple[CalibrationResult, float]:
    """The product's own calibration, without settings but the number of images; and the seconds that it took."""
    start = time.perf_counter()
    source = DataSource(description="crops of photographs")
    images = NamedImages(crops.pixels, source, photographs=crops.photographs.tolist())
    config, run = CalibrationConfig(num_images=len(crops.pixels), seed=seed), RunConfig(workers=0)  # nothing to decode
    result = calibrate(grown, images, config=config, run=run)
    result.save(folder)
    return result, time.perf_counter() - start


def models_of(grown: PreTrainedModel, result: CalibrationResult) -> tuple[dict[str, Any], dict[str, str]]:
    """The grown model, patched with what was found, and its controls, by row; and why there is no constant mode.

    The grown model alone if nothing was found.
    """
    if not result.register_neurons:
        return {BASE: grown}, {CONSTANT: f"no register neurons were found, the verdict is `{result.verdict}`"}
    patched = add_test_time_registers(grown, result)
    models, why_not = model_rows(patched), why_no_constants(patched, result)
    if why_not is not None:
        return models, {CONSTANT: why_not}
    models[CONSTANT] = constant_row(patched, result).model
    return {name: models[name] for name in ROWS if name in models}, {}


def rows_of(
    original: PreTrainedModel, models: Mapping[str, PreTrainedModel], result: CalibrationResult, crops: Crops
) -> tuple[Row, ...]:
    """What each model makes of the crops.

    Args:
        original: before growing.
        models: by row; `base` is the grown model.
        result: its calibration, which says what an outlier is.
        crops: to measure on.
    """
    measured = {name: _measured(model, crops, result) for name, model in models.items()}
    before_BT, grown_BT = (_hidden_states(model, crops.pixels) for model in (original, models[BASE]))
    outliers_BN = torch.stack(measured[BASE].outliers_BN)
    rows = []
    for name, model in models.items():
        found, states_BT = measured[name], _hidden_states(model, crops.pixels)
        rows.append(
            Row(
                name,
                _outlier_ratio(found, measured[BASE], crops.photographs),
                _distances(states_BT, before_BT, outliers_BN, crops.photographs),
                _distances(states_BT, grown_BT, outliers_BN, crops.photographs),
                float((found.norms.max_L / found.norms.quantile_L(0.5)).max()),
            )
        )
    return tuple(rows)


def outliers_an_image(grown: PreTrainedModel, result: CalibrationResult, crops: Crops) -> float:
    """Mean number of outlier tokens by the rule that the calibration found."""
    return float(_measured(grown, crops, result).outliers_B.mean())


def _measured(model: PreTrainedModel, crops: Crops, result: CalibrationResult) -> Measurement:
    return measure(VisionTower.to_measure(model), batches_of(crops, model), result.outlier_rule)


def batches_of(crops: Crops, model: PreTrainedModel) -> ImageBatches:
    """All crops, on the model's device."""
    count = len(crops.pixels)
    return ImageBatches(crops.pixels, None, num_images=count, batch_size=_BATCH_SIZE, device=model.device)


@torch.no_grad()
def _hidden_states(model: PreTrainedModel, pixels: Tensor) -> Tensor:
    """Final ones, after the LayerNorm, `(B, T, D)` on the CPU."""
    parts = [model(part.to(model.device)).last_hidden_state.float().cpu() for part in pixels.split(_BATCH_SIZE)]
    return torch.cat(parts)


def _outlier_ratio(found: Measurement, base: Measurement, photographs: Tensor) -> tuple[float, ...] | None:
    after_P, before_P = (_sums(each.outliers_B, photographs) for each in (found, base))
    interval = interval_of_ratio(after_P, before_P)
    return (float(after_P.sum() / before_P.sum()), *(interval or ())) if before_P.any() else None


def _distances(
    states_BT: Tensor, before_BT: Tensor, outliers_BN: Tensor, photographs: Tensor
) -> dict[str, tuple[float, ...] | None]:
    distance_BT = 1 - F.cosine_similarity(states_BT.double(), before_BT.double(), dim=-1)
    cls_BN, patches_BN = distance_BT[:, :1], distance_BT[:, 1:]
    return {
        "CLS": _mean(cls_BN, torch.ones_like(cls_BN), photographs),
        "ordinary patches": _mean(patches_BN, ~outliers_BN, photographs),
        "outlier patches": _mean(patches_BN, outliers_BN, photographs),
    }


def _mean(values_BN: Tensor, counted_BN: Tensor, photographs: Tensor) -> tuple[float, ...] | None:
    """Over photographs, each of which counts alike, with the interval; `None` where nothing is counted."""
    sums_P = _sums((values_BN * counted_BN).sum(1), photographs)
    counts_P = _sums(counted_BN.double().sum(1), photographs)
    means_P = (sums_P / counts_P)[counts_P > 0]
    return (float(means_P.mean()), *(interval_of_mean(means_P) or ())) if len(means_P) else None


def _sums(values_B: Tensor, photographs: Tensor) -> Tensor:
    return torch.zeros(int(photographs.max()) + 1).double().index_add(0, photographs, values_B.double())
