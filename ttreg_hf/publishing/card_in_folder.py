"""The card of a checkpoint folder, made again when something is added to the folder."""

import json
from pathlib import Path

from huggingface_hub import ModelCard

from ttreg_hf.evaluation.evaluation_result import EVALUATION_FILE, Evaluation, read_evaluations, write_evaluation
from ttreg_hf.publishing.card import merged_card, model_card
from ttreg_hf.publishing.checkpoint import read_calibration
from ttreg_hf.publishing.checkpoint_config import read_config
from ttreg_hf.publishing.published_files import CARD, DEMO_LINK, checkpoint_files, pictures_of
from ttreg_hf.records import read_json
from ttreg_hf.writing import write_into

_REMEDY = "Remove it, or publish the Space again with `ttreg demo CKPT --space ORG/NAME`."


def add_evaluation(directory: str | Path, evaluation: Evaluation) -> list[Path]:
    """Write an evaluation into a checkpoint folder, and its figures onto the card; what its owner wrote there stays.

    Returns:
        The files written.

    Raises:
        FileNotFoundError, ValueError: not the folder of a patched checkpoint, or a file in it is not as written.
    """
    directory = Path(directory)
    _check_checkpoint(directory)
    write_evaluation(directory, evaluation)
    return [directory / EVALUATION_FILE, _write_card(directory)]


def add_space(directory: str | Path, repo_id: str) -> list[Path]:
    """Link the Space that shows a checkpoint on its card; what its owner wrote there stays.

    Returns:
        The files written.

    Raises:
        FileNotFoundError, ValueError: as `add_evaluation`.
    """
    directory = Path(directory)
    _check_checkpoint(directory)
    write_into(directory, DEMO_LINK, (json.dumps({"space": repo_id}) + "\n").encode())
    return [directory / DEMO_LINK, _write_card(directory)]


def read_space(directory: Path) -> str | None:
    """The Space that shows a checkpoint, if `add_space` linked one."""
    path = directory / DEMO_LINK
    return str(read_json(path, remedy=_REMEDY).get("space")) if path.is_file() else None


def _check_checkpoint(directory: Path) -> None:
    """Errors of a folder that is none, before anything is written."""
    read_config(directory)
    checkpoint_files(directory)


def _write_card(directory: Path) -> Path:
    """From all that lies in the folder."""
    card = model_card(
        read_config(directory),
        read_calibration(directory),
        evaluations=read_evaluations(directory),
        pictures=pictures_of(checkpoint_files(directory)),
        space=read_space(directory),
    )
    if (directory / CARD).is_file():
        card = merged_card(card, ModelCard.load(directory / CARD))
    return write_into(directory, CARD, str(card).encode())
