"""Leaves out of what is published where somebody keeps files, and what files are called there."""

import dataclasses
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

from ttreg_hf.calibration.calibration_result import JSON_FILE, CalibrationResult
from ttreg_hf.evaluation.evaluation_result import EVALUATION_FILE, Evaluation
from ttreg_hf.images.data_source import LOCAL_FOLDER
from ttreg_hf.loading import is_hub_id
from ttreg_hf.publishing.published_files import EXPECTED_OUTPUTS, checkpoint_files
from ttreg_hf.records import read_json
from ttreg_hf.writing import write_file

LOCAL_FILE = "a local file"
_ABSOLUTE = re.compile(r"(?:/[^/\n]|~[\w.-]*/|file:|[A-Za-z]:[\\/]|\\\\)[^\n]*")  # on any system
_NAMES = ("_name_or_path", "name_or_path")  # where transformers notes what something was loaded from
_MEASURED = (JSON_FILE, EVALUATION_FILE, EXPECTED_OUTPUTS)  # these are made without local names, or hold numbers
_WORDS = ("tokenizer.json", "vocab.json", "added_tokens.json")  # a vocabulary may hold anything
_LOSSLESS = {"PNG": {}, "WEBP": {"lossless": True}, "JPEG": {"quality": 95}}


def hide_local_names(folder: Path) -> None:
    """Take local names out of the JSON that transformers has written into a checkpoint folder."""
    for name, content in json_without_local_names(checkpoint_files(folder)).items():
        write_file(folder / name, content)


def json_without_local_names(files: Mapping[str, Path]) -> dict[str, bytes]:
    """Those of a checkpoint's files that hold local names, without them: name -> content.

    Raises:
        ValueError: one that should hold JSON does not.
    """
    changed = {}
    for name, path in files.items():
        if path.suffix == ".json" and name not in (*_MEASURED, *_WORDS):
            fields = read_json(path, remedy="Save the checkpoint again.")
            if (kept := without_local_names(fields)) != fields:
                changed[name] = (json.dumps(kept, indent=2) + "\n").encode()
    return changed


def without_local_names(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a config; a base model that is a local path becomes null, other local paths say only that."""
    kept = {name: _without_paths(value) for name, value in fields.items() if name not in _NAMES}
    if "base_model_name_or_path" in kept and not is_hub_id(fields["base_model_name_or_path"]):
        kept |= {"base_model_name_or_path": None, "base_model_revision": None}
    return kept


def calibration_without_local_names(calibration: CalibrationResult) -> CalibrationResult:
    """A calibration whose provenance says `a local folder` instead of which, and names no local file."""
    provenance = calibration.provenance
    is_public = provenance.source.repo_id is not None
    return dataclasses.replace(
        calibration,
        provenance=dataclasses.replace(
            provenance,
            model=public_name(provenance.model),
            source=provenance.source.without_local_path(),
            bad_images=tuple(_public_key(key, is_public) for key in provenance.bad_images),
        ),
    )


def evaluation_without_local_names(evaluation: Evaluation) -> Evaluation:
    """Likewise of an evaluation."""
    is_public = evaluation.source.repo_id is not None
    trained = evaluation.trained_registers
    return dataclasses.replace(
        evaluation,
        source=evaluation.source.without_local_path(),
        model=public_name(evaluation.model),
        trained_registers=None if trained is None else public_name(trained),
        bad_images=tuple(_public_key(key, is_public) for key in evaluation.bad_images),
    )


def public_name(name: str) -> str:
    """A Hub id as it is."""
    return name if is_hub_id(name) else LOCAL_FOLDER


def public_title(name: str, model: Any) -> str:
    """What a model is called on pictures and cards: by its Hub id, or by its class."""
    return name.rsplit("/", maxsplit=1)[-1] if is_hub_id(name) else type(model).__name__


def picture_without_metadata(path: Path) -> bytes:
    """A picture as it looks, in its format, without what cameras and editors add.

    Raises:
        ValueError: not a PNG, JPEG or WebP picture.
    """
    try:
        with Image.open(path) as picture:
            kind, upright = picture.format or "", ImageOps.exif_transpose(picture)
            options = _LOSSLESS[kind]
    except (UnidentifiedImageError, KeyError) as error:
        raise ValueError(
            f"Pictures of a checkpoint are PNG, JPEG or WebP, but {path} is none of these. Save it as PNG."
        ) from error
    upright.info = {}
    buffer = io.BytesIO()
    upright.save(buffer, kind, **options)
    return buffer.getvalue()


def _public_key(key: str, is_public: bool) -> str:
    """The name of an image; of a data set on the Hub it is public."""
    return key if is_public and not _is_local_path(key) else LOCAL_FILE


def _without_paths(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_paths(item) for key, item in value.items() if key not in _NAMES}
    if isinstance(value, list):
        return [_without_paths(item) for item in value]
    return LOCAL_FILE if isinstance(value, str) and _is_local_path(value) else value


def _is_local_path(value: str) -> bool:
    if _ABSOLUTE.fullmatch(value):
        return True
    is_relative = re.search(r"[^/\\\s][/\\]", value) is not None and "://" not in value
    try:
        return is_relative and Path(value).exists()
    except OSError:  # too long for a name
        return False
