"""Schemes by which the linear layers of a vision tower's blocks are quantised, by their names.

Simulated ones round weights and inputs to what the format holds and compute as before; torchao's run its own kernels.

Letters: `C` inputs of a linear layer, `M` linear layers.
"""

import importlib.util
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from ttreg_hf.applying import shared_copy
from ttreg_hf.evaluation.quantised_linear import (
    RoundedLinear,
    Rounding,
    fp8_per_output,
    fp8_static,
    int4_per_group,
    int8_per_output,
    int8_per_token,
    int8_static,
    to_16_bit,
    unrounded,
)
from ttreg_hf.measuring.head_room import HeadRoom
from ttreg_hf.measuring.linear_ranges import LinearRanges, linear_layers
from ttreg_hf.measuring.tower import VisionTower

_ALPHA, _PERCENTILE = 0.5, 0.999
_KEPT_SHARE = 0.1
_TINY = 1e-5  # of inputs and weights that are all zero


@dataclass(frozen=True)
class LayerRange:
    """What static scales of one layer are made of, over the calibration images.

    Args:
        channels_C: largest absolute input of each channel.
        percentile: below which 99.9 % of the absolute inputs lie.
    """

    channels_C: Tensor
    percentile: Tensor


Quantise = Callable[[nn.Linear, LayerRange], nn.Module]


@dataclass(frozen=True)
class Scheme:
    """One way to quantise.

    Args:
        name: in tables and options.
        quantise: a linear layer and its range -> the layer that takes its place; `None`: a kernel of torchao's.
        kernel: name of torchao's configuration, where it is one.
    """

    name: str
    quantise: Quantise | None = None
    kernel: str | None = None

    @property
    def is_simulated(self) -> bool:
        return self.kernel is None

    def quantised(self, model: PreTrainedModel, ranges: LinearRanges, kept: Collection[str] = ()) -> PreTrainedModel:
        """A copy of a model whose tower's linear layers are quantised; all that it does not change is shared.

        Args:
            model: stays as it is.
            ranges: of the model on calibration images.
            kept: layers, as `linear_layers` names them, that are in bfloat16 instead.
        """
        twin = shared_copy(model)
        layers = linear_layers(VisionTower.of(twin))
        if self.kernel is not None:
            _quantise_by_torchao(twin, self.kernel, {id(each) for name, each in layers.items() if name not in kept})
            return twin
        assert self.quantise is not None  # simulated
        trunk = VisionTower.of(twin).trunk
        for name, layer in layers.items():
            found = LayerRange(ranges.channel_maxima[name], ranges.input_quantile(name, _PERCENTILE))
            quantise = _kept_in_16_bit if name in kept else self.quantise
            parent, _, child = name.rpartition(".")
            setattr(trunk.get_submodule(parent), child, quantise(layer, found))
        return twin


def worst_layers(ranges: LinearRanges) -> tuple[str, ...]:
    """A tenth of the layers, at least one: those whose int8 step is the largest over their median input."""
    linears = sorted(HeadRoom.of(ranges).linears, key=lambda each: each.int8_step, reverse=True)
    return tuple(each.name for each in linears[: max(1, round(_KEPT_SHARE * len(linears)))])


def available_schemes() -> tuple[str, ...]:
    """Names of those that can run here: torchao's kernels only where it is installed."""
    has_torchao = importlib.util.find_spec("torchao") is not None
    return tuple(name for name, scheme in SCHEMES.items() if scheme.is_simulated or has_torchao)


def scheme_called(name: str) -> Scheme:
    """The scheme of this name.

    Raises:
        ValueError: there is none.
        ImportError: it is torchao's, which is not installed.
    """
    if name not in SCHEMES:
        raise ValueError(f"`schemes` are of {', '.join(SCHEMES)}, got {name!r}.")
    if name not in available_schemes():
        raise ImportError(f"The scheme {name!r} runs torchao's kernels. Install it with `pip install torchao`.")
    return SCHEMES[name]


def _rounded(round_input: Callable[[LayerRange], Rounding], round_weight: Rounding) -> Quantise:
    return lambda layer, found: RoundedLinear(layer, round_input(found), round_weight)


def _smoothed(layer: nn.Linear, found: LayerRange) -> nn.Module:
    """SmoothQuant: part of the inputs' spread is moved into the weights, channel by channel, in every layer.

    Source: Xiao et al. 2023 (arXiv 2211.10438), with alpha 0.5.
    """
    weights_C = layer.weight.detach().float().abs().amax(0)
    spread_C = found.channels_C.clamp_min(_TINY) ** _ALPHA / weights_C.clamp_min(_TINY) ** (1 - _ALPHA)
    smoothing_C = spread_C.clamp_min(_TINY)
    largest = (found.channels_C / smoothing_C).max()
    return RoundedLinear(layer, int8_static(largest), int8_per_output, smoothing_C)


def _kept_in_16_bit(layer: nn.Linear, found: LayerRange) -> nn.Module:
    return RoundedLinear(layer, to_16_bit, to_16_bit)


def _quantise_by_torchao(model: PreTrainedModel, kernel: str, layers: set[int]) -> None:
    from torchao import quantization

    config: Any = getattr(quantization, kernel)()
    quantization.quantize_(model, config, filter_fn=lambda module, name: id(module) in layers)


SCHEMES = {
    each.name: each
    for each in (
        Scheme("int8 static, maximum", _rounded(lambda found: int8_static(found.channels_C.max()), int8_per_output)),
        Scheme("int8 static, 99.9 %", _rounded(lambda found: int8_static(found.percentile), int8_per_output)),
        Scheme("int8 dynamic", _rounded(lambda found: int8_per_token, int8_per_output)),
        Scheme("SmoothQuant", _smoothed),
        Scheme("FP8 static", _rounded(lambda found: fp8_static(found.channels_C.max()), fp8_per_output)),
        Scheme("int4 weights", _rounded(lambda found: unrounded, int4_per_group)),
        Scheme("int8 dynamic, torchao", kernel="Int8DynamicActivationInt8WeightConfig"),
    )
}
