"""What is left open in a config, and what becomes of it; which stage sees which image."""

import dataclasses
import hashlib
import heapq
from collections.abc import Collection

from ttreg_hf.calibration.config import CalibrationConfig
from ttreg_hf.calibration.inspection import Inspection
from ttreg_hf.calibration.verdict import MIN_VERIFIED
from ttreg_hf.measuring.outlier_rule import OutlierRule
from ttreg_hf.measuring.tower import VisionTower

AUTOMATIC = ("norm_threshold", "detection_layer", "first_layer", "last_layer", "top_k")
SCORE, SELECT, VERIFY = "score", "select", "verify"
_PART = 8  # of so many photographs one verifies, and one chooses


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


def checked_layers(config: CalibrationConfig, tower: VisionTower) -> CalibrationConfig:
    """The config with 0-based layers; what is `None` stays so.

    Raises:
        ValueError: the model has no such layer, or the range is empty.
    """
    detection, first, last = (
        None if layer is None else tower.layer(name, layer)
        for name, layer in (
            ("detection_layer", config.detection_layer),
            ("first_layer", config.first_layer),
            ("last_layer", config.last_layer),
        )
    )
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


def resolved(config: CalibrationConfig, inspection: Inspection) -> CalibrationConfig:
    """The config, whose layers are 0-based, with everything filled in that an inspection shows."""
    search = search_of(config, inspection)
    return dataclasses.replace(
        config,
        norm_threshold=search.rule.norm_threshold,
        detection_layer=search.detection_layer,
        first_layer=search.first_layer,
        last_layer=search.last_layer,
    )


@dataclasses.dataclass(frozen=True)
class Roles:
    """Which stage sees which photograph, by seeded hashes of their numbers: the same on every machine.

    Those with the lowest hashes verify, the next ones choose, the others score.

    Args:
        seed: of the hashes.
        last_to_verify: highest hash of those that verify.
        last_to_select: likewise, of those that choose.
    """

    seed: int
    last_to_verify: bytes
    last_to_select: bytes

    @classmethod
    def of(cls, photographs: Collection[int], seed: int) -> "Roles":
        """An eighth verifies and an eighth chooses, but at least eight each, where there are as many."""
        count = min(max(MIN_VERIFIED, len(photographs) // _PART), len(photographs) // 2)
        lowest = heapq.nsmallest(2 * count, (_hash(photograph, seed) for photograph in photographs))
        return cls(seed, *(lowest[end - 1] if count else b"" for end in (count, 2 * count)))

    def role(self, photograph: int) -> str:
        """`SCORE`, `SELECT` or `VERIFY`."""
        found = _hash(photograph, self.seed)
        if found <= self.last_to_verify:
            return VERIFY
        return SELECT if found <= self.last_to_select else SCORE


def _hash(photograph: int, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}:{photograph}".encode()).digest()
