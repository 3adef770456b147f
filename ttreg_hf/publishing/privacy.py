"""Leaves out of what is published where somebody keeps files."""

import dataclasses
from pathlib import Path
from typing import Any

from ttreg_hf.calibration.calibration_result import CalibrationResult
from ttreg_hf.images.data_source import LOCAL_FOLDER
from ttreg_hf.loading import is_hub_id

LOCAL_FILE = "a local file"


def config_without_local_paths(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a config.json; a base model that is a local path becomes null."""
    kept = {name: value for name, value in fields.items() if name != "_name_or_path"}
    if not is_hub_id(kept.get("base_model_name_or_path")):
        kept |= {"base_model_name_or_path": None, "base_model_revision": None}
    return kept


def calibration_without_local_paths(calibration: CalibrationResult) -> CalibrationResult:
    """A calibration whose provenance says `a local folder` instead of which, and names no local file."""
    provenance = calibration.provenance
    return dataclasses.replace(
        calibration,
        provenance=dataclasses.replace(
            provenance,
            model=LOCAL_FOLDER if _is_path(provenance.model) else provenance.model,
            source=provenance.source.without_local_path(),
            bad_images=tuple(LOCAL_FILE if _is_path(name) else name for name in provenance.bad_images),
        ),
    )


def _is_path(name: str) -> bool:
    if is_hub_id(name) or "://" in name:
        return False
    return "/" in name or "\\" in name or name.startswith((".", "~")) or Path(name).exists()
