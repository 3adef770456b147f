"""A checksum of weights, for repositories that hold none: they fetch the base model's, and must get the same."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ttreg_hf.records import read_json

_FORMAT = 1


def weights_checksum(model: nn.Module) -> str:
    """SHA-256 over all parameters and saved buffers: their dtypes, shapes and values.

    Names do not enter, and so it does not depend on the order: transformers renames modules from release to release,
    and the same tensors are saved under several layouts.

    Returns:
        64 hexadecimal digits; equal for the model saved and loaded again in the same dtype.
    """
    digests = sorted(_digest(tensor) for tensor in model.state_dict().values())
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def checksum_fields(model: nn.Module) -> dict[str, Any]:
    """The content of `base_weights.json`."""
    return {"format": _FORMAT, "sha256": weights_checksum(model), "tensors": len(model.state_dict())}


def read_checksum(path: Path) -> str:
    """The checksum in a `base_weights.json`.

    Raises:
        ValueError: a file of another format.
    """
    fields = read_json(path, remedy="Publish it again with `ttreg push --config-only`.")
    if fields.get("format") != _FORMAT or not isinstance(fields.get("sha256"), str):
        raise ValueError(
            f"{path} must have format {_FORMAT} and a `sha256`, got format {fields.get('format')!r}. Install the "
            "version of ttreg_hf that wrote it, or publish it again."
        )
    return fields["sha256"]


def _digest(tensor: Tensor) -> str:
    values = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{values.dtype} {tuple(values.shape)} ".encode())
    digest.update(values.reshape(-1).view(torch.uint8).numpy().tobytes())  # bytes of any dtype, bfloat16 too
    return digest.hexdigest()
