"""The calibration beside a patched checkpoint: in its folder, or in its repository. Talks to the network."""

from pathlib import Path
from typing import Any

from transformers.utils.hub import cached_file

from ttreg_hf.calibration.calibration_result import JSON_FILE, TENSOR_FILE, CalibrationResult
from ttreg_hf.modeling.modeling_ttreg import TTRegModelMixin


def calibration_beside(
    model: Any, name_or_path: str | Path, *, revision: str | None = None, token: str | bool | None = None
) -> CalibrationResult | None:
    """The calibration of a patched checkpoint; `None` where there is none, or the Hub cannot be asked.

    Args:
        model: that was loaded from it; beside a stock one nothing is looked for.
        name_or_path: Hub id, or checkpoint folder.
        revision: branch, tag or commit on the Hub.
        token: for private or gated repositories.

    Raises:
        FileNotFoundError: one of the two files is missing.
        ValueError: files of another format, or damaged.
    """
    if not isinstance(model, TTRegModelMixin):
        return None
    described, _ = (
        cached_file(
            str(name_or_path),
            name,
            revision=revision,
            token=token,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        for name in (JSON_FILE, TENSOR_FILE)
    )
    return None if described is None else CalibrationResult.load(Path(described).parent)
