"""What is left open in a config, and what becomes of it; which stage sees which image."""

import dataclasses
import hashlib

from transformers import PreTrainedModel

from ttreg_hf.calibration.config import CalibrationConfig
from ttreg_hf.calibration.inspection import Inspection
from ttreg_hf.calibration.outliers import OutlierRule
from ttreg_hf.families import blocks_of, family_of

AUTOMATIC = ("norm_threshold", "detection_layer", "first_layer", "last_layer", "top_k")
SCORE, SELECT, VERIFY = "score", "select", "verify"
_SELECT_SHARE, _VERIFY_SHARE = 0.125, 0.125


@dataclasses.dataclass(frozen=True)
class Search:
    """Where to look, with nothing left open. Layers are 0-based and inclusive."""

    rule: OutlierRule
    first_layer: int
    last_layer: int

    @property
    def detection_layer(self) -> int:
        """Block whose output shows the outliers."""
        return self.rule.detection_layer


def default_detection_layer(model: PreTrainedModel) -> int:
    """The family's, 0-based."""
    return family_of(model).detection_layer % len(blocks_of(model))


def checked_layers(config: CalibrationConfig, model: PreTrainedModel) -> CalibrationConfig:
    """The config with 0-based layers; what is `None` stays so.

    Raises:
        ValueError: the model has no such layer, or the range is empty.
    """
    num_layers = len(blocks_of(model))
    detection = _layer("detection_layer", config.detection_layer, num_layers)
    first = _layer("first_layer", config.first_layer, num_layers)
    last = _layer("last_layer", config.last_layer, num_layers)
    if first is not None and last is not None and first > last:
        raise ValueError(f"`first_layer` is at most `last_layer`, got {first} and {last}.")
    return dataclasses.replace(config, detection_layer=detection, first_layer=first, last_layer=last)


def search_of(config: CalibrationConfig, inspection: Inspection) -> Search:
    """As the config says, else from the block in which outliers begin to the last one in which one arrives.

    Args:
        config: layers are 0-based.
        inspection: of some images.
    """
    first, last = config.first_layer, config.last_layer
    if last is None:
        found = inspection.rule.detection_layer if inspection.last_layer is None else inspection.last_layer
        last = max(found, first or 0)
    if first is None:
        first = min(inspection.first_layer or 0, last)
    return Search(inspection.rule, first, last)


def resolved(config: CalibrationConfig, model: PreTrainedModel, inspection: Inspection) -> CalibrationConfig:
    """The config with everything filled in that an inspection tells."""
    layers = checked_layers(config, model)
    search = search_of(layers, inspection)
    return dataclasses.replace(
        layers,
        norm_threshold=search.rule.norm_threshold,
        detection_layer=search.detection_layer,
        first_layer=search.first_layer,
        last_layer=search.last_layer,
    )


def role_of(place: int, seed: int) -> str:
    """Which stage an image is for, by its place in the source: the same on every machine."""
    share = hashlib.sha256(f"{seed}:{place}".encode()).digest()[0] / 256
    if share < _VERIFY_SHARE:
        return VERIFY
    return SELECT if share < _VERIFY_SHARE + _SELECT_SHARE else SCORE


def _layer(name: str, layer: int | None, num_layers: int) -> int | None:
    if layer is None:
        return None
    if not -num_layers <= layer < num_layers:
        raise ValueError(
            f"`{name}` is a layer from {-num_layers} to {num_layers - 1} (this model has {num_layers} blocks), "
            f"got {layer}."
        )
    return layer % num_layers
