"""The tensors of a model's output by name, whatever form it has."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def named_outputs(outputs: Any) -> dict[str, Tensor]:
    """Floating-point tensors, in the output's order; the parts of a tuple are numbered: `feature_maps.0`.

    Args:
        outputs: a model output of transformers, or a dict of tensors.
    """
    found = {}
    items = outputs.items() if isinstance(outputs, Mapping) else vars(outputs).items()
    for name, value in items:
        parts = {name: value} if isinstance(value, Tensor) else _numbered(name, value)
        found |= {part: tensor for part, tensor in parts.items() if tensor.is_floating_point()}
    return found


def _numbered(name: str, value: Any) -> dict[str, Tensor]:
    if not isinstance(value, (tuple, list)):
        return {}
    return {f"{name}.{place}": part for place, part in enumerate(value) if isinstance(part, Tensor)}
