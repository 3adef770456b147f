"""A checksum of what a calibration was measured on: the trunk's tensors that its forward pass on an image reads.

Names are those below the trunk, as the installed stock class has them: the same bare, with a head, and inside another
model. A pooling head is left out: models around a trunk have it or not, and no block reads it.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ttreg_hf.measuring.tower import VisionTower

_POOLER = "pooler"  # of ViT and its kin
_SIDE_IN_PATCHES = 4  # of the image, where the config names no size
_NARROWER = (torch.bfloat16, torch.float16)


def weights_checksums(tower: VisionTower) -> dict[str, str]:
    """SHA-256 of the weights as they are, and cast to narrower number formats in which they may be loaded.

    Args:
        tower: of a base model, or of a patched one without its registers.

    Returns:
        Number format -> 64 hexadecimal digits, that of the model first.

    Raises:
        ValueError: weights that are not in memory.
    """
    read, own = tensors_read(tower), tower.trunk.dtype
    narrower = [dtype for dtype in _NARROWER if own == torch.float32]
    return {_name(dtype): _checksum(read, dtype) for dtype in (own, *narrower)}


def has_checksum(tower: VisionTower, checksums: Mapping[str, str]) -> bool:
    """Whether a model's weights are those, in its own number format or in the first one, to which a copy is cast.

    Args:
        tower: of a base model, or of a patched one without its registers.
        checksums: what `weights_checksums` gave.
    """
    measured = next(iter(checksums))
    own = _name(tower.trunk.dtype)
    dtype = own if own in checksums else measured
    return _checksum(tensors_read(tower), getattr(torch, dtype)) == checksums[dtype]


def tensors_read(tower: VisionTower) -> dict[str, Tensor]:
    """Parameters and saved buffers that the trunk's forward pass reads, by their names below it.

    Raises:
        ValueError: weights that are not in memory, so that nothing can be read.
    """
    trunk = tower.trunk
    left_out = tuple(f"{part}." for part in (_POOLER, tower.family.pooling_head) if part)
    named = {
        name: tensor for name, tensor in trunk.state_dict(keep_vars=True).items() if not name.startswith(left_out)
    }
    if any(tensor.is_meta for tensor in named.values()):
        raise ValueError(
            "A calibration is compared with weights in memory, but some of this model are offloaded. Load it whole, "
            "or pass the calibration's `register_neurons`."
        )
    height, width = tower.training_size or tuple(_SIDE_IN_PATCHES * side for side in tower.base_layout.patch_size)
    inputs = tower.inputs(torch.zeros(1, tower.num_channels, height, width))
    with torch.no_grad(), _Readings(named.values()) as readings:
        trunk(**inputs)
    return {name: tensor for name, tensor in named.items() if id(tensor) in readings.seen}


class _Readings(TorchFunctionMode):
    """Notes which of some tensors are handed to a function of torch."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()
        self._known = {id(tensor) for tensor in tensors}
        self.seen: set[int] = set()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in _LOOKS:
            self.seen.update(id(value) for value in _leaves((args, kwargs)) if id(value) in self._known)
        return func(*args, **kwargs)


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, (tuple, list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _leaves(item)
    else:
        yield value


_TENSOR: Any = Tensor  # whose attributes are descriptors, as functions of torch are told by
# what asks for no value: transformers looks up the dtype of weights before it reads an image
_LOOKS = {Tensor.is_floating_point, *(getattr(_TENSOR, name).__get__ for name in ("dtype", "device", "shape"))}


def _checksum(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        values = tensor.detach()
        if values.is_floating_point():
            values = values.to(dtype)
        values = values.cpu().contiguous()
        digest.update(f"{name} {tuple(values.shape)} {_name(values.dtype)} ".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
