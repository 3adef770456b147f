"""A model whose outlier patches are hidden: behind the detection block no token attends to them, nor do they.

Letters: `B` images, `T` tokens, `H` heads.
"""

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ttreg_hf.measuring.outlier_rule import OutlierRule
from ttreg_hf.measuring.recorder import token_norms
from ttreg_hf.measuring.tower import VisionTower
from ttreg_hf.modeling.registers import TokenLayout

_MASK = "attention_mask"
_TAKE_MASKS = ("eager", "sdpa")  # of tokens that ask and are not seen


def why_not_masked(tower: VisionTower, detection_layer: int) -> str | None:
    """Why outliers cannot be hidden in a model; `None` if they can."""
    if detection_layer == tower.num_layers - 1:
        return f"outliers are told after block {detection_layer}, the last, behind which no token attends to any"
    attention = tower.attention(detection_layer + 1)
    if _MASK not in inspect.signature(attention.forward).parameters:
        return f"{type(attention).__name__} takes no attention mask"
    return None


def masked_model(base: PreTrainedModel, rule: OutlierRule) -> PreTrainedModel:
    """A private copy around the same weights, with hooks that hide outliers from attention; else the base model.

    An image without outliers is what the base model makes of it. Padding stays hidden; where nothing but outliers
    could be seen, none is hidden. Attention is eager or SDPA: in place of another implementation SDPA.

    Args:
        base: a base model, which stays as it is; `why_not_masked` has no reason against it.
        rule: which patches are outliers, by their norm alone.
    """
    implementation = VisionTower.of(base).trunk.config._attn_implementation
    tower = VisionTower.to_measure(base, attention=None if implementation in _TAKE_MASKS else "sdpa")
    hiding = _Hiding(rule, tower.layout)
    tower.blocks[rule.detection_layer].register_forward_hook(hiding.on_detection_block)
    for layer in range(rule.detection_layer + 1, tower.num_layers):
        tower.attention(layer).register_forward_pre_hook(hiding.before_attention, with_kwargs=True)
    return tower.model


class _Hiding:
    """What the hooks of one masked model share: the outliers of the forward pass that runs now."""

    def __init__(self, rule: OutlierRule, layout: TokenLayout) -> None:
        self.rule, self.layout = rule, layout
        self.outliers_BT: Tensor | None = None

    def on_detection_block(self, module: Any, args: Any, output: Any) -> None:
        states_BTD = output[0] if isinstance(output, tuple) else output
        outliers_BT = self.rule.above(token_norms(states_BTD), self.layout)
        self.outliers_BT = outliers_BT if outliers_BT.any() else None  # without any the very same kernels run

    def before_attention(self, module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if self.outliers_BT is None:
            return None
        given = inspect.signature(module.forward).bind(*args, **kwargs)
        tokens, mask = next(iter(given.arguments.values())), given.arguments.get(_MASK)
        seen_BT = self.layout.seen_by_registers(mask)
        given.arguments[_MASK] = hidden_from(mask, self.outliers_BT, seen_BT, tokens.dtype)
        return given.args, given.kwargs


def hidden_from(mask: Tensor | None, hidden_BT: Tensor, seen_BT: Tensor | None, dtype: torch.dtype) -> Tensor:
    """An attention mask in which some tokens are seen by none.

    Args:
        mask: `(B or 1, H or 1, T or 1, T)`, boolean or added to the attention logits; `None`: all see all.
        hidden_BT: which tokens to hide, bool; none of an image in which nothing else would be seen.
        seen_BT: which tokens the mask shows, bool; `None`: all.
        dtype: of a mask that is added.
    """
    left_BT = ~hidden_BT if seen_BT is None else seen_BT & ~hidden_BT
    columns_B11T = (hidden_BT & left_BT.any(dim=1, keepdim=True))[:, None, None]
    if mask is None:
        mask = torch.zeros_like(columns_B11T, dtype=dtype)
    if mask.dtype == torch.bool:
        return mask & ~columns_B11T
    return torch.where(columns_B11T, torch.finfo(mask.dtype).min, mask)
