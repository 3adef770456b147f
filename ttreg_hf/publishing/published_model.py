"""Loads published checkpoints, those without weights too. Talks to the network."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, PreTrainedModel
from transformers.utils.hub import cached_file

from ttreg_hf.applying import place_constants
from ttreg_hf.hub_access import explaining_access
from ttreg_hf.loading import check_is_there, commit_of, is_hub_id, saved_class
from ttreg_hf.modeling.modeling_ttreg import CONSTANTS
from ttreg_hf.publishing.base_weights import read_checksum, weights_checksum
from ttreg_hf.publishing.checkpoint_config import assert_patched
from ttreg_hf.publishing.published_files import BASE_WEIGHTS, CONSTANTS_FILE


def from_pretrained(
    repo_id_or_path: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    dtype: str | torch.dtype | None = None,
) -> PreTrainedModel:
    """A published patched model, in eval mode, by the installed code; no code of the repository runs.

    A repository without weights gets those of its base model, at the commit that it names. Only safetensors files are
    read.

    Args:
        repo_id_or_path: Hub id, or checkpoint folder.
        revision: branch, tag or commit of this repository; pin a commit.
        token: for private or gated repositories, the base model's too.
        dtype: `None`: the checkpoint's.

    Returns:
        A model of the class that was saved.

    Raises:
        FileNotFoundError: there is no such folder.
        PermissionError: this repository, or its base model's, is gated.
        ValueError: not a patched model, or the base model's weights are not those that it was made of.
        OSError: from transformers, naming what is missing on the Hub.
    """
    name = str(repo_id_or_path)
    check_is_there(name)
    with explaining_access(name):
        config = AutoConfig.from_pretrained(name, revision=revision, token=token, trust_remote_code=False)
    assert_patched(config, name)
    pinned = commit_of(name, revision=revision, token=token) or revision  # all files of one commit
    checksum_file = cached_file(
        name,
        BASE_WEIGHTS,
        revision=pinned,
        token=token,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,  # offline: a full checkpoint has no such file in the cache
    )
    cls = saved_class(config)
    if checksum_file is None:
        return cls.from_pretrained(
            name, revision=pinned, token=token, dtype=dtype or "auto", use_safetensors=True
        ).eval()
    constants = None
    if config.test_time_register_mode == "constant":
        constants = cached_file(name, CONSTANTS_FILE, revision=pinned, token=token)
    checksum = read_checksum(Path(checksum_file))
    model: Any = _with_base_weights(cls, config, token, checksum=checksum, name=name, constants_file=constants)
    return model if dtype in (None, "auto") else model.to(getattr(torch, dtype) if isinstance(dtype, str) else dtype)


def _with_base_weights(
    cls: Any, config: Any, token: str | bool | None, *, checksum: str, name: str, constants_file: str | None
) -> PreTrainedModel:
    base, revision = config.base_model_name_or_path, config.base_model_revision
    if not is_hub_id(base) or not revision:
        raise ValueError(
            f"{name} holds no weights, so its config must name a base model on the Hub and its commit, got {base!r} "
            f"at {revision!r}. Publish it again with `ttreg push --config-only`."
        )
    dtype = config.dtype or "auto"
    try:
        model = cls.from_pretrained(
            base, config=config, revision=revision, token=token, dtype=dtype, use_safetensors=True
        ).eval()
    except OSError:  # of a gated repository too transformers says only that it holds no weights
        with explaining_access(base, why=f"{name} holds no weights, and its base model "):
            commit_of(base, revision=revision, token=token)
        raise
    if constants_file is not None:
        place_constants(model, load_file(constants_file)[CONSTANTS])
    found = weights_checksum(model)
    if found != checksum:
        raise ValueError(
            f"{name} belongs to weights with the SHA-256 {checksum[:16]}..., but {base} at {revision} gives "
            f"{found[:16]}... Its register neurons mean nothing in other weights: get the base model that it was "
            "made of, or calibrate this one."
        )
    return model
