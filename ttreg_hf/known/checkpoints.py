"""The checkpoints that come with settings or published register neurons, by the Hub id of their base model."""

import functools
from pathlib import Path

from ttreg_hf.known.hub_config_files import read_known_checkpoints
from ttreg_hf.known.known_checkpoint import KnownCheckpoint


def known_checkpoints() -> dict[str, KnownCheckpoint]:
    """All known checkpoints by the Hub id of their base model, sorted by id."""
    return dict(_shipped_checkpoints())


def known_checkpoint(name_or_path: str) -> KnownCheckpoint | None:
    """The known checkpoint with exactly this Hub id; `None` for any other id and for local paths."""
    return known_checkpoints().get(name_or_path)


@functools.cache
def _shipped_checkpoints() -> tuple[tuple[str, KnownCheckpoint], ...]:
    return tuple(read_known_checkpoints(_hub_configs_folder()).items())


def _hub_configs_folder() -> Path:
    """Inside the package in an installed wheel, beside it in a source checkout or an editable install."""
    package = Path(__file__).parents[1]
    for folder in (package / "hub_configs", package.parent / "hub_configs"):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"hub_configs/ must lie in or beside {package}, got neither. Reinstall ttreg_hf.")
