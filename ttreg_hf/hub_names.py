"""Tells names on the Hub from local paths, which say where somebody keeps files and are never published."""

import dataclasses
import re
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ttreg_hf.calibration.result import CalibrationResult

LOCAL_FOLDER = "a local folder"
_STREAMED = re.compile(r"(?P<repo_id>[\w.-]+/[\w.-]+) \([\w.-]+\)")  # as `find_images` names a data set on the Hub


def is_hub_id(name: str | None) -> bool:
    """Whether this is `namespace/name`, and not a path that exists here."""
    if not name or name.count("/") != 1 or Path(name).exists():
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def dataset_id(images: str) -> str | None:
    """The Hub id in a calibration's description of its images, if they were streamed from the Hub."""
    found = _STREAMED.fullmatch(images)
    return found["repo_id"] if found else None


def config_without_local_paths(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a config.json; a base model that is a local path becomes null."""
    kept = {name: value for name, value in fields.items() if name != "_name_or_path"}
    if not is_hub_id(kept.get("base_model_name_or_path")):
        kept |= {"base_model_name_or_path": None, "base_model_revision": None}
    return kept


def calibration_without_local_paths(calibration: CalibrationResult) -> CalibrationResult:
    """A calibration whose provenance says `a local folder` instead of which."""
    provenance = calibration.provenance
    model = provenance.model if is_hub_id(provenance.model) or not _is_path(provenance.model) else LOCAL_FOLDER
    images = LOCAL_FOLDER if _is_path(provenance.images) else provenance.images
    return dataclasses.replace(calibration, provenance=dataclasses.replace(provenance, model=model, images=images))


def _is_path(name: str) -> bool:
    looks_local = name.startswith((".", "/", "~")) or "\\" in name or ("/" in name and dataset_id(name) is None)
    return looks_local or Path(name).exists()
