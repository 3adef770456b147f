"""What a setting left at `None` becomes, after the paper's guidance (arXiv 2506.08010, A.4); how images are split."""

import dataclasses
import hashlib

from transformers import PreTrainedModel

from ttreg_hf.calibration.config import CalibrationConfig
from ttreg_hf.calibration.norms import NormReport, NormStatistics, norm_report, paper_threshold
from ttreg_hf.families import blocks_of, family_of

AUTOMATIC = ("norm_threshold", "detection_layer", "first_layer", "last_layer", "top_k")
_HELD_OUT_SHARE = 0.25


@dataclasses.dataclass(frozen=True)
class Search:
    """Where to look, with nothing left open. Layers are 0-based and inclusive."""

    detection_layer: int
    norm_threshold: float
    first_layer: int
    last_layer: int


def resolve_layers(config: CalibrationConfig, model: PreTrainedModel) -> CalibrationConfig:
    """The config with 0-based layers, defaults filled in; `last_layer` may stay `None` until norms have been seen.

    Raises:
        ValueError: the model has no such layer, or the range is empty.
    """
    num_layers = len(blocks_of(model))
    detection = family_of(model).detection_layer if config.detection_layer is None else config.detection_layer
    first = _layer("first_layer", config.first_layer or 0, num_layers)
    last = None if config.last_layer is None else _layer("last_layer", config.last_layer, num_layers)
    if last is not None and first > last:
        raise ValueError(f"`first_layer` is at most `last_layer`, got {first} and {last}.")
    detection = _layer("detection_layer", detection, num_layers)
    return dataclasses.replace(config, detection_layer=detection, first_layer=first, last_layer=last)


def report_norms(config: CalibrationConfig, model: PreTrainedModel, statistics: NormStatistics) -> NormReport:
    """The norms as seen from the config's detection block, with its threshold or the paper's."""
    detection = resolve_layers(config, model).detection_layer or 0
    threshold = config.norm_threshold
    if threshold is None:
        threshold = paper_threshold(statistics, detection)
    return norm_report(statistics, detection, threshold)


def search_of(config: CalibrationConfig, model: PreTrainedModel, norms: NormReport | None) -> Search:
    """Where to look: as the config says, else up to the first block whose output has an outlier.

    Raises:
        ValueError: the config leaves something open that only `norms` can tell.
    """
    layers = resolve_layers(config, model)
    threshold = norms.norm_threshold if norms else config.norm_threshold
    first, last, detection = layers.first_layer or 0, layers.last_layer, layers.detection_layer or 0
    if norms and last is None:
        last = max(first, detection if norms.first_outlier_layer is None else norms.first_outlier_layer)
    if threshold is None or last is None:
        raise ValueError("`norm_threshold` and `last_layer` are given, or chosen from the norms of some images.")
    return Search(detection, threshold, first, last)


def is_held_out(index: int, seed: int) -> bool:
    """Whether an image is kept from scoring, by its place in the source: one in four, the same on every machine."""
    digest = hashlib.sha256(f"{seed}:{index}".encode()).digest()
    return digest[0] < 256 * _HELD_OUT_SHARE


def _layer(name: str, layer: int, num_layers: int) -> int:
    if not -num_layers <= layer < num_layers:
        raise ValueError(
            f"`{name}` is a layer from {-num_layers} to {num_layers - 1} (this model has {num_layers} blocks), "
            f"got {layer}."
        )
    return layer % num_layers
