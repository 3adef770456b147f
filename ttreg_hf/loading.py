"""Loads base models and their image processors, with errors that say what to do."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoImageProcessor, AutoProcessor, PreTrainedModel
from transformers.utils import has_file

from ttreg_hf.families import loader_of, supported_model_types, why_not

_TOKENIZER = "tokenizer_config.json"


def load_model(
    name_or_path: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """A model in eval mode, by Hub id or path: bare, or whole where its tower is inside.

    Args:
        name_or_path: Hub id, or folder with `config.json` and weights.
        revision: branch, tag or commit on the Hub.
        token: for private or gated repositories.
        device: `None`: the first GPU, or the CPU.
        dtype: `None`: the checkpoint's.
        trust_remote_code: run model code that the repository brings.

    Raises:
        FileNotFoundError: a folder without a checkpoint.
        ValueError: a model that cannot be patched.
        OSError: from transformers, naming what is missing on the Hub.
    """
    _check_folder(name_or_path)
    hub: dict[str, Any] = {"revision": revision, "token": token, "trust_remote_code": trust_remote_code}
    model_type = _model_type(name_or_path, hub)
    kinds = [*supported_model_types(), *(f"{name}_ttreg" for name in supported_model_types())]
    if model_type not in kinds:
        raise ValueError(
            f"{name_or_path} is a model of type {model_type!r}, which cannot be given test-time registers: "
            f"{why_not(model_type)}. Supported are {', '.join(supported_model_types())}."
        )
    model = loader_of(model_type).from_pretrained(name_or_path, dtype=dtype or "auto", **hub)
    return model.eval().to(device or default_device())


def load_processor(
    name_or_path: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    trust_remote_code: bool = False,
) -> Any:
    """The image processor of a checkpoint; `None` where the checkpoint has none."""
    try:
        return AutoImageProcessor.from_pretrained(
            name_or_path, revision=revision, token=token, trust_remote_code=trust_remote_code
        )
    except OSError:
        return None


def load_whole_processor(
    model: PreTrainedModel,
    name_or_path: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    trust_remote_code: bool = False,
) -> Any:
    """What lies beside a checkpoint of this model: its image processor, with the tokenizer if the model reads text.

    `None` where the checkpoint has none.
    """
    hub: dict[str, Any] = {"revision": revision, "token": token, "trust_remote_code": trust_remote_code}
    # without this file AutoProcessor makes up a tokenizer that knows no words
    if "text" in model.input_modalities and has_file(name_or_path, _TOKENIZER, revision=revision, token=token):
        return AutoProcessor.from_pretrained(name_or_path, **hub)
    return load_processor(name_or_path, **hub)


def default_device() -> torch.device:
    """The first GPU, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def check_device(name: str) -> None:
    """Nothing, if this machine has a device of this name, such as `cuda:1`.

    Raises:
        ValueError: it has none.
    """
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # torch asserts where it was built without this kind of device
        names = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
        raise ValueError(
            f"`--device` names a device of this machine, got {name!r}. Here: {', '.join(names)}."
        ) from error


def _model_type(name_or_path: str, hub: dict[str, Any]) -> str:
    try:
        return AutoConfig.from_pretrained(name_or_path, **hub).model_type
    except ImportError as error:  # timm is not installed, and would not help
        if "timm" not in str(error):
            raise
        return "timm_wrapper"


def _check_folder(name_or_path: str) -> None:
    path = Path(name_or_path)
    if path.is_dir() and not (path / "config.json").is_file():
        raise FileNotFoundError(
            f"A checkpoint folder holds config.json and weights, but {path} has no config.json. "
            "Give the folder that `save_pretrained` wrote, or a Hub id."
        )
