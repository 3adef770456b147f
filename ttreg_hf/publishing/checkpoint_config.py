"""The config of a checkpoint folder, checked before anything is made of it."""

import re
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from ttreg_hf.modeling.modeling_ttreg import TTRegConfigMixin
from ttreg_hf.publishing.published_files import CONFIG, suitcase_files
from ttreg_hf.records import read_json

_REFERENCE = re.compile(r"(\w+)\.\w+")  # of auto_map: file and class, in this folder
_AGAIN = "Make the checkpoint again with `ttreg apply`."


def read_config(directory: Path) -> Any:
    """The config of a checkpoint folder.

    Raises:
        FileNotFoundError: no such folder, or no config.json in it.
        ValueError: not that of a patched model, or it names code outside the folder.
    """
    fields = read_config_fields(directory)
    if not str(fields.get("model_type", "")).endswith("_ttreg"):
        raise ValueError(
            f"{directory} must hold a patched model, got one of type {fields.get('model_type')!r}. Patch it with "
            "`ttreg apply MODEL --output CKPT`."
        )
    config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    assert_patched(config, str(directory))
    return config


def read_config_fields(directory: Path) -> dict[str, Any]:
    """What config.json of a checkpoint folder says.

    Raises:
        FileNotFoundError: no such folder, or no config.json in it.
        ValueError: it is damaged, or names code outside the folder.
    """
    if not directory.is_dir():
        raise FileNotFoundError(
            f"There is no folder {directory}. Give a checkpoint that `ttreg apply MODEL --output CKPT` wrote."
        )
    if not (directory / CONFIG).is_file():
        raise FileNotFoundError(
            f"A checkpoint folder holds {CONFIG} and weights, but {directory} has no {CONFIG}. Make one with "
            "`ttreg apply MODEL --output CKPT`."
        )
    fields = read_json(directory / CONFIG, remedy=_AGAIN)
    references = fields.get("auto_map") or {}
    for reference in references.values() if isinstance(references, dict) else [references]:
        found = _REFERENCE.fullmatch(str(reference))
        if found is None or f"{found[1]}.py" not in suitcase_files():
            raise ValueError(f"`auto_map` names files of ttreg_hf in its own folder, got {reference!r}. {_AGAIN}")
    architectures = fields.get("architectures") or []
    if not (isinstance(architectures, list) and all(str(name).isidentifier() for name in architectures)):
        raise ValueError(
            f"`architectures` of {directory / CONFIG} are names of classes, got {architectures}. {_AGAIN}"
        )
    return fields


def assert_patched(config: Any, name: str) -> None:
    """Refuse the config of a stock model.

    Raises:
        ValueError: it is one.
    """
    if not isinstance(config, TTRegConfigMixin):
        raise ValueError(
            f"{name} must hold a patched model, got one of type {config.model_type!r}. Patch it with "
            "`ttreg apply MODEL --output CKPT`."
        )
