"""Linear layers with fewer bits, simulated: values are rounded to what the format holds, and computed with as before.

Letters: `C` inputs, `O` outputs of a linear layer, `G` groups of inputs, `X` values.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ttreg_hf.measuring.head_room import FP8_MAX, INT8_LEVELS

Rounding = Callable[[Tensor], Tensor]
_INT4_LEVELS, _INT4_GROUP = 7, 128


class RoundedLinear(nn.Module):
    """A linear layer that reads rounded inputs through a rounded weight; the bias stays as it is.

    Args:
        layer: stays as it is.
        round_input: of `(..., C)`.
        round_weight: of `(O, C)`; done once.
        smoothing_C: that inputs are divided by and weights multiplied with before both are rounded; `None`: none.
    """

    def __init__(
        self, layer: nn.Linear, round_input: Rounding, round_weight: Rounding, smoothing_C: Tensor | None = None
    ) -> None:
        super().__init__()
        weight_OC = layer.weight.detach().float()
        self.weight = nn.Parameter(
            round_weight(weight_OC if smoothing_C is None else weight_OC * smoothing_C).to(layer.weight.dtype),
            requires_grad=False,
        )
        self.bias, self.in_features, self.out_features = layer.bias, layer.in_features, layer.out_features
        self._round_input, self._smoothing_C = round_input, smoothing_C

    def forward(self, given: Tensor) -> Tensor:
        wide = given.float() if self._smoothing_C is None else given.float() / self._smoothing_C
        return nn.functional.linear(self._round_input(wide).to(given.dtype), self.weight, self.bias)


def unrounded(values: Tensor) -> Tensor:
    """The values as they are."""
    return values


def int8_per_output(weight_OC: Tensor) -> Tensor:
    """int8 weights, one scale an output."""
    return to_int(weight_OC, weight_OC.abs().amax(1, keepdim=True), INT8_LEVELS)


def int4_per_group(weight_OC: Tensor) -> Tensor:
    """int4 weights, one scale for each 128 inputs of an output; the last group may have fewer."""
    missing = -weight_OC.shape[1] % _INT4_GROUP
    groups_OGX = nn.functional.pad(weight_OC, (0, missing)).unflatten(1, (-1, _INT4_GROUP))
    rounded = to_int(groups_OGX, groups_OGX.abs().amax(2, keepdim=True), _INT4_LEVELS).flatten(1)
    return rounded[:, : weight_OC.shape[1]]


def fp8_per_output(weight_OC: Tensor) -> Tensor:
    """FP8 (e4m3) weights, one scale an output."""
    return to_fp8(weight_OC, weight_OC.abs().amax(1, keepdim=True))


def int8_per_token(values: Tensor) -> Tensor:
    """int8 inputs, one scale a token, by the token's own largest value."""
    return to_int(values, values.abs().amax(-1, keepdim=True), INT8_LEVELS)


def int8_static(largest: Tensor) -> Rounding:
    """int8 inputs with one scale, measured before: what is larger is cut."""
    return lambda values: to_int(values, largest, INT8_LEVELS)


def fp8_static(largest: Tensor) -> Rounding:
    """FP8 (e4m3) inputs with one scale, measured before: what is larger is cut."""
    return lambda values: to_fp8(values, largest)


def to_16_bit(values: Tensor) -> Tensor:
    """bfloat16."""
    return values.bfloat16().float()


def to_int(values: Tensor, largest: Tensor, levels: int) -> Tensor:
    """Rounded to whole multiples of `largest / levels`, from `-largest` to `largest`."""
    step = _positive(largest) / levels
    return (values / step).round().clamp(-levels, levels) * step


def to_fp8(values: Tensor, largest: Tensor) -> Tensor:
    """Rounded to e4m3, scaled so that `largest` is 448, the largest value that it holds."""
    scale = _positive(largest) / FP8_MAX
    return (values / scale).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn).float() * scale


def _positive(largest: Tensor) -> Tensor:
    return largest.float().clamp_min(torch.finfo(torch.float32).tiny * 2**20)
