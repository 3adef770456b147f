"""A checkpoint folder as it will be published: checked, without local names, with or without weights."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save

from ttreg_hf.applying import constants_of
from ttreg_hf.calibration.calibration_result import JSON_FILE, CalibrationResult
from ttreg_hf.evaluation.evaluation_result import EVALUATION_FILE, Evaluation, read_evaluations
from ttreg_hf.loading import saved_class
from ttreg_hf.modeling.modeling_ttreg import CONSTANTS
from ttreg_hf.publishing.base_repository import BaseRepository
from ttreg_hf.publishing.base_weights import checksum_fields
from ttreg_hf.publishing.card_in_folder import read_space
from ttreg_hf.publishing.checkpoint import check_verdict, read_calibration
from ttreg_hf.publishing.checkpoint_config import read_config
from ttreg_hf.publishing.output_check import check_outputs
from ttreg_hf.publishing.privacy import (
    calibration_without_local_names,
    evaluation_without_local_names,
    json_without_local_names,
    picture_without_metadata,
)
from ttreg_hf.publishing.published_files import (
    BASE_WEIGHTS,
    CARD,
    CONSTANTS_FILE,
    checkpoint_files,
    is_weight_file,
    other_files,
    pictures_of,
)

_COMMIT_DIGITS = 40


@dataclass(frozen=True)
class PreparedCheckpoint:
    """A checkpoint that has passed all checks, as it will be uploaded, without its card and foreign licences."""

    directory: Path
    config: Any
    calibration: CalibrationResult | None
    evaluations: tuple[Evaluation, ...]
    contents: Mapping[str, bytes | Path]
    config_only: bool
    base: BaseRepository | None
    space: str | None = None
    notes: tuple[str, ...] = ()


def prepare(
    directory: Path, base: BaseRepository | None, *, config_only: bool, force: bool, trust_remote_code: bool
) -> PreparedCheckpoint:
    """All checks that need no network, and what is uploaded."""
    config, calibration = read_config(directory), read_calibration(directory)
    if calibration is not None:
        check_verdict(calibration, force=force)
    files = checkpoint_files(directory)
    if not any(is_weight_file(name) for name in files):
        raise FileNotFoundError(
            f"A checkpoint folder holds model.safetensors, but {directory} has none. Make it with "
            "`ttreg apply MODEL --output CKPT`; `--config-only` leaves the weights out when it is pushed."
        )
    if config_only:
        _check_base(config, base)
    check_outputs(directory, trust_remote_code=trust_remote_code)

    if calibration is not None:
        calibration = calibration_without_local_names(calibration)
    evaluations = tuple(map(evaluation_without_local_names, read_evaluations(directory)))
    contents = _contents(files, calibration, evaluations)
    if config_only:
        model = saved_class(config).from_pretrained(directory, dtype="auto", use_safetensors=True)
        contents = {name: content for name, content in contents.items() if not is_weight_file(name)}
        contents[BASE_WEIGHTS] = _json(checksum_fields(model))
        if (constants := constants_of(model)) is not None:
            contents[CONSTANTS_FILE] = save({CONSTANTS: constants})
    notes = _notes(directory, base, config_only=config_only)
    space = read_space(directory)
    return PreparedCheckpoint(directory, config, calibration, evaluations, contents, config_only, base, space, notes)


def _contents(
    files: Mapping[str, Path], calibration: CalibrationResult | None, evaluations: Sequence[Evaluation]
) -> dict[str, bytes | Path]:
    """Path in the repository -> content without local names, or the file that is sent as it is."""
    contents: dict[str, bytes | Path] = {name: path for name, path in files.items() if name != CARD}
    contents |= {name: picture_without_metadata(files[name]) for name in pictures_of(files)}
    contents |= json_without_local_names(files)
    if calibration is not None:
        contents[JSON_FILE] = _json(calibration.to_dict())
    if evaluations:
        contents[EVALUATION_FILE] = _json({"evaluations": [evaluation.to_dict() for evaluation in evaluations]})
    return contents


def _notes(directory: Path, base: BaseRepository | None, *, config_only: bool) -> tuple[str, ...]:
    notes = []
    if not (directory / "preprocessor_config.json").is_file():
        notes.append("no image processor: strangers have to bring their own")
    if others := other_files(directory):
        notes.append(f"not sent, because ttreg does not make such files: {', '.join(others)}")
    if base is not None and not base.allows_copies:
        notes.append(
            f"no weights, because {base.why_not}: strangers get them from there"
            if config_only
            else f"{base.why_not}: see that it lets you publish its weights"
        )
    return tuple(notes)


def _check_base(config: Any, base: BaseRepository | None) -> None:
    revision = config.base_model_revision
    if base is None:
        raise ValueError(
            "`--config-only` needs a base model on the Hub, got a local one. Apply to a Hub id, or publish weights."
        )
    if not (revision and len(revision) == _COMMIT_DIGITS and all(digit in "0123456789abcdef" for digit in revision)):
        because = "" if base.allows_copies else f" ({base.why_not}, so that it is the default)"
        raise ValueError(
            f"`--config-only`{because} needs the base model's commit, of {_COMMIT_DIGITS} hexadecimal digits, but "
            f"`base_model_revision` is {revision!r}. Make the checkpoint with `ttreg apply {base.repo_id} --revision "
            "COMMIT` (`add_test_time_registers(..., base_model_revision=COMMIT)`)."
        )


def _json(fields: dict[str, Any]) -> bytes:
    return (json.dumps(fields, indent=2) + "\n").encode()
