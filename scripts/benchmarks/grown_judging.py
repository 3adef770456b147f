"""What a calibration makes of a model in which artifacts were grown, held against the model before growing.

Letters: `B` crops, `P` photographs, `N` patches, `T` tokens.
"""

import dataclasses
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.grown_photographs import Crops
from ttreg_hf.applying import add_test_time_registers
from ttreg_hf.calibration.calibration_result import CalibrationResult
from ttreg_hf.calibration.calibration_run import calibrate
from ttreg_hf.calibration.config import CalibrationConfig
from ttreg_hf.evaluation.rows import BASE, model_rows
from ttreg_hf.images.batches import ImageBatches
from ttreg_hf.images.data_sets import NamedImages
from ttreg_hf.images.data_source import DataSource
from ttreg_hf.measuring.intervals import interval_of_mean, interval_of_ratio
from ttreg_hf.measuring.measurement import Measurement, measure
from ttreg_hf.measuring.tower import VisionTower

_BATCH_SIZE = 16


@dataclasses.dataclass(frozen=True)
class Row:
    """One model on the photographs to report on. Intervals are 95 %, over eight or more photographs.

    Args:
        model: which, such as `patched`.
        outlier_ratio: outlier tokens over those of the grown model, with its interval; `None` if that has none.
        distances: 1 - mean cosine to the final hidden states before growing, with its interval, of CLS, of ordinary
            patches and of those that are outliers in the grown model; `None` where there is no such patch.
    """

    model: str
    outlier_ratio: tuple[float, ...] | None
    distances: dict[str, tuple[float, ...] | None]


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
    result = calibrate(grown, images, config=CalibrationConfig(num_images=len(crops.pixels), seed=seed))
    result.save(folder)
    return result, time.perf_counter() - start


def rows_of(
    original: PreTrainedModel, grown: PreTrainedModel, result: CalibrationResult, crops: Crops
) -> tuple[Row, ...]:
    """The grown model, patched with what was found, and its controls; the grown model alone if nothing was found."""
    models = {BASE: grown}
    if result.register_neurons:
        models = model_rows(add_test_time_registers(grown, result))
    measured = {name: _measured(model, crops, result) for name, model in models.items()}
    before_BT = _hidden_states(original, crops.pixels)
    outliers_BN = torch.stack(measured[BASE].outliers_BN)
    return tuple(
        Row(
            name,
            _outlier_ratio(measured[name], measured[BASE], crops.photographs),
            _distances(_hidden_states(model, crops.pixels), before_BT, outliers_BN, crops.photographs),
        )
        for name, model in models.items()
    )


def outliers_an_image(grown: PreTrainedModel, result: CalibrationResult, crops: Crops) -> float:
    """Mean number of outlier tokens by the rule that the calibration found."""
    return float(_measured(grown, crops, result).outliers_B.mean())


def _measured(model: PreTrainedModel, crops: Crops, result: CalibrationResult) -> Measurement:
    batches = ImageBatches(
        crops.pixels, None, num_images=len(crops.pixels), batch_size=_BATCH_SIZE, device=model.device
    )
    return measure(VisionTower.to_measure(model), batches, result.outlier_rule)


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
