"""Reads the files of `hub_configs/`: one JSON file per base model, which is data only; tests check what they say."""

import json
from pathlib import Path

from ttreg_hf.known.known_checkpoint import KnownCheckpoint
from ttreg_hf.records import from_json


def read_known_checkpoints(folder: Path) -> dict[str, KnownCheckpoint]:
    """Every file of a folder, by base model, sorted.

    Raises:
        ValueError: a file that is not what `KnownCheckpoint` describes; it is named.
    """
    checkpoints = map(read_known_checkpoint, folder.glob("*.json"))
    return {known.base_model: known for known in sorted(checkpoints, key=lambda known: known.base_model)}


def read_known_checkpoint(path: Path) -> KnownCheckpoint:
    """One file; errors as `read_known_checkpoints`."""
    try:
        return from_json(KnownCheckpoint, json.loads(path.read_text(encoding="utf-8")), name="the file")
    except (TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} must be JSON of a known checkpoint. {error} Correct the file.") from error
