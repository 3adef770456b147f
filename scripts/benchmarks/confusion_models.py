"""The models of the confusion table, with their images and the truth that a calibration is held to."""

import functools
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, PreTrainedModel

from benchmarks.confusion_outcomes import EXACT, FOREIGN, GROWN, MINIMAL, NONE, TOO_FEW, UNWIRED, Cell, Outcome
from benchmarks.grown_photographs import crops_to_calibrate
from benchmarks.grown_variants import CHECKPOINT, VARIANTS
from benchmarks.planted_interventions import GONE, Effect, check_truth, effect_of
from benchmarks.planted_kinds import make_known_model
from benchmarks.planted_truth import KnownModel
from ttreg_hf.calibration.calibration_result import CalibrationResult
from ttreg_hf.calibration.config import CalibrationConfig
from ttreg_hf.images.data_sets import NamedImages
from ttreg_hf.images.data_source import DataSource
from ttreg_hf.measuring.position_report import Place
from ttreg_hf.planted import synthetic_images

Judge = Callable[[CalibrationResult, float, str], Outcome]


@dataclass(frozen=True)
class Subject:
    """A model to calibrate.

    Args:
        model: stock.
        images: that it was not tuned on.
        config: of the calibration.
        judge: from a result, the seconds that it took and what was taken out, to the outcome.
    """

    model: PreTrainedModel
    images: NamedImages
    config: CalibrationConfig
    judge: Judge


@dataclass(frozen=True)
class GrownModels:
    """Models in which artifacts were grown.

    Args:
        folder: of `scripts/grown_artifacts.py`: a folder `VARIANT-SEED` for each model, with its checkpoint.
        photographs: those that the models are calibrated on.
        num_images: crops of them.
        device: that they are calibrated on.
    """

    folder: Path
    photographs: Path
    num_images: int
    device: str

    def cells(self) -> list[Cell]:
        """All that were grown.

        Raises:
            ValueError: there is none.
        """
        names = sorted(path.parent.name for path in self.folder.glob(f"*-*/{CHECKPOINT}"))
        if not names:
            raise ValueError(
                f"Grown models are folders VARIANT-SEED/{CHECKPOINT}, but {self.folder} holds none. Make them with "
                "`python scripts/grown_artifacts.py`."
            )
        return [Cell(GROWN, variant, "", int(seed)) for variant, _, seed in (name.rpartition("-") for name in names)]

    def subject(self, cell: Cell) -> Subject:
        """The model of a cell."""
        variant = VARIANTS[cell.kind]
        folder = self.folder / f"{cell.kind}-{cell.seed}" / CHECKPOINT
        model = AutoModel.from_pretrained(folder, dtype=torch.float32).to(self.device).eval()
        crops = crops_to_calibrate(self.photographs, variant.image_size, self.num_images, seed=cell.seed)
        images = NamedImages(
            crops.pixels, DataSource(description="crops of photographs"), photographs=crops.photographs.tolist()
        )
        config = CalibrationConfig(num_images=self.num_images, seed=cell.seed)
        return Subject(model, images, config, functools.partial(_grown_outcome, cell, variant.expected))


def planted_subject(cell: Cell, num_images: int) -> Subject:
    """A planted model, on images that it was not tuned on.

    Raises:
        ValueError: it is not what it should be.
    """
    known = make_known_model(cell.family, cell.kind, trigger=cell.trigger, seed=cell.seed)
    check_truth(known)
    images = NamedImages.of(synthetic_images(num_images, seed=20_000 + cell.seed), None)
    to_judge = synthetic_images(num_images, seed=30_000 + cell.seed)

    @functools.cache
    def effect(threshold: float, pairs: frozenset[tuple[int, int]], spikes: frozenset[Place]) -> Effect:
        return effect_of(replace(known, norm_threshold=threshold), pairs, to_judge, spikes)

    return Subject(
        known.model,
        images,
        CalibrationConfig(num_images=num_images),
        functools.partial(_planted_outcome, cell, known, effect),
    )


def _planted_outcome(
    cell: Cell,
    known: KnownModel,
    effect_on: Callable[[float, frozenset[tuple[int, int]], frozenset[Place]], Effect],
    result: CalibrationResult,
    seconds: float,
    without: str,
) -> Outcome:
    neurons = frozenset((neuron.layer, neuron.neuron) for neuron in result.register_neurons)
    found = {*neurons, *map(_spike, result.fixed_positions)}
    planted = {*known.planted_pairs, *map(_spike, known.fixed_positions)}
    # a pruned set may leave what is just below its own threshold
    threshold = min(max(result.config.norm_threshold or 0.0, known.norm_threshold), 1.5 * known.norm_threshold)
    effect = effect_on(threshold, neurons, frozenset(result.fixed_positions))
    missing, extra = sorted(planted - found, key=str), sorted(found - planted, key=str)
    return Outcome(
        **asdict(cell),
        expected=known.verdicts,
        got=result.verdict,
        recovery=_recovery(planted, found, effect.outliers_left),
        planted=len(planted),
        found=len(found),
        foreign=len(extra),
        outliers_left=effect.outliers_left,
        similarity=effect.similarity,
        norm_threshold=result.config.norm_threshold,
        known_threshold=known.norm_threshold,
        missing=tuple(missing[:10]),
        extra=tuple(extra[:10]),
        seconds=seconds,
        without=without,
        constant_mode=None if result.constant_mode is None else result.constant_mode.passed,
    )


def _spike(place: Place) -> tuple[str, int, int]:
    return "spike", *place


def _recovery(planted: set[tuple[Any, ...]], found: set[tuple[Any, ...]], outliers_left: float) -> str:
    if not found:
        return NONE
    if found - planted:
        return FOREIGN
    if found == planted:
        return EXACT
    return MINIMAL if outliers_left < GONE else TOO_FEW


def _grown_outcome(
    cell: Cell, expected: tuple[str, ...], result: CalibrationResult, seconds: float, without: str
) -> Outcome:
    """Nobody knows which neurons are right: what is left of the outliers is what the calibration verified."""
    verified = result.verification
    return Outcome(
        **asdict(cell),
        expected=expected,
        got=result.verdict,
        recovery=UNWIRED if result.register_neurons else NONE,
        planted=0,
        found=len(result.register_neurons),
        foreign=0,
        outliers_left=1.0 if verified is None else verified.outlier_ratio,
        similarity=1.0 if verified is None else verified.feature_similarity,
        norm_threshold=result.config.norm_threshold,
        known_threshold=0.0,
        missing=(),
        extra=(),
        seconds=seconds,
        without=without,
        constant_mode=None if result.constant_mode is None else result.constant_mode.passed,
    )
