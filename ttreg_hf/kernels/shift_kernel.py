"""The shift as one Triton kernel: each column of a register neuron is read once and written in place.

Importing this fails with `ImportError` where there is no Triton, or one older than 3.3.

Letters: `B` images, `T` tokens, `P` prefix tokens, `R` test-time registers, `F` neurons, `K` register neurons.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.torch_version import TorchVersion

from ttreg_hf.modeling.registers import TokenLayout, shift_neurons

if TorchVersion(triton.__version__) < "3.3":  # its compiled kernels did not take their constants as arguments
    raise ImportError(f"needs Triton 3.3 or newer, got {triton.__version__}")

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_TOKENS_OF_TILE = 64  # where one program handles all neurons of a layer
_MOST_NEURONS = 64  # that it handles
_MOST_TOKENS = 1024  # of a tile where a program handles one neuron
# a compiled kernel serves all their values, and so can be called again without Triton's search for a fitting one
_VARIABLES = ("acts", "index", "seen", "num_tokens", "num_neurons", "image_stride", "token_stride", "scale")


@triton.jit(do_not_specialize=_VARIABLES)
def _shift(
    acts,
    index,
    seen,
    num_tokens,
    num_neurons,
    image_stride,
    token_stride,
    scale,
    prefix: tl.constexpr,
    registers: tl.constexpr,
    per_layer: tl.constexpr,
    scaled: tl.constexpr,
    zeroed: tl.constexpr,
    masked: tl.constexpr,
    integer: tl.constexpr,
    magnitude_bits: tl.constexpr,
    tokens_of_tile: tl.constexpr,
    neurons_of_tile: tl.constexpr,
):
    image = tl.program_id(0).to(tl.int64)
    places = tl.program_id(1) * neurons_of_tile + tl.arange(0, neurons_of_tile)
    listed = places < num_neurons
    columns = acts + image * image_stride + tl.load(index + places, mask=listed, other=0)

    # magnitudes are compared as integers, which orders them as numbers; a tie goes to the first, as in plain PyTorch
    most = tl.full((neurons_of_tile,), -1, dtype=tl.int32)
    first = tl.zeros((neurons_of_tile,), dtype=tl.int32)
    for start in range(0, num_tokens, tokens_of_tile):
        tokens = start + tl.arange(0, tokens_of_tile)
        counts = tokens < num_tokens
        if masked:
            counts = counts & (tl.load(seen + image * num_tokens + tokens, mask=counts, other=0) != 0)
        if not per_layer:
            counts = counts & ((tokens < prefix) | (tokens >= prefix + registers))
        inside = counts[:, None] & listed[None, :]
        values = tl.load(columns[None, :] + tokens[:, None] * token_stride, mask=inside, other=0.0)
        magnitudes = (values.to(integer, bitcast=True) & magnitude_bits).to(tl.int32)
        magnitudes = tl.where(inside, magnitudes, -1)
        best = tl.max(magnitudes, axis=0)
        where = tl.min(tl.where(magnitudes == best[None, :], tokens[:, None], num_tokens), axis=0)
        first = tl.where(best > most, where, first)
        most = tl.maximum(best, most)
    if per_layer:  # of equal magnitudes the first in the order of tokens, then of neurons
        strongest = tl.max(most, axis=0)
        order = tl.where(most == strongest, first * num_neurons + places, num_tokens * num_neurons)
        winner = tl.min(order, axis=0)
        source = acts + image * image_stride + tl.load(index + winner % num_neurons)
        moved = tl.load(source + winner // num_neurons * token_stride + 0 * places)
    else:
        moved = tl.load(columns + first * token_stride, mask=listed, other=0.0)
    if scaled:
        moved = (moved.to(tl.float32) * scale).to(acts.dtype.element_ty)

    tl.debug_barrier()  # all has been read before anything is written
    for register in tl.static_range(registers):
        tl.store(columns + (prefix + register) * token_stride, moved, mask=listed)
    if zeroed:
        for start in range(prefix + registers, num_tokens, tokens_of_tile):
            tokens = start + tl.arange(0, tokens_of_tile)
            inside = (tokens < num_tokens)[:, None] & listed[None, :]
            nothing = tl.zeros((tokens_of_tile, neurons_of_tile), dtype=acts.dtype.element_ty)
            tl.store(columns[None, :] + tokens[:, None] * token_stride, nothing, mask=inside)


def shift_neurons_with_triton(
    acts_BTF: Tensor,
    index_K: Tensor,
    layout: TokenLayout,
    settings: Mapping[str, Any],
    seen_BT: Tensor | None = None,
    *,
    in_place: bool = False,
) -> Tensor:
    """`shift_neurons` in one kernel where that is possible, and in plain PyTorch where it is not."""
    count = index_K.shape[0]
    value, fill, scale = (settings[f"shift_{name}"] for name in ("value", "fill", "scale"))
    is_moving = layout.num_test_time_registers > 0  # zeroing alone is one operation as it is
    if not (is_moving and in_place and _is_possible(acts_BTF, value, fill, count)):
        return shift_neurons(acts_BTF, index_K, layout, settings, seen_BT, in_place=in_place)
    images, tokens, _ = acts_BTF.shape
    with torch.cuda.device_of(acts_BTF):
        kernel, constants = _compiled(
            acts_BTF.device,
            acts_BTF.dtype,
            layout.num_prefix_tokens,
            layout.num_test_time_registers,
            value == "per_layer",
            scale != 1,
            fill == "zero",
            seen_BT is not None,
            tokens,
            count,
        )
        kernel[images, -(-count // constants[-1]), 1](
            acts_BTF,
            index_K,
            index_K if seen_BT is None else seen_BT.contiguous().view(torch.uint8),
            tokens,
            count,
            acts_BTF.stride(0),
            acts_BTF.stride(1),
            float(scale),
            *constants,
        )
    return acts_BTF


@cache
def _compiled(
    device: torch.device,
    dtype: torch.dtype,
    prefix: int,
    registers: int,
    per_layer: bool,
    scaled: bool,
    zeroed: bool,
    masked: bool,
    tokens: int,
    count: int,
) -> tuple[Any, tuple[Any, ...]]:
    """The kernel for such a shift on this device, which must be the current one, and its constants."""
    is_wide = dtype == torch.float32
    constants = (
        prefix,
        registers,
        per_layer,
        scaled,
        zeroed,
        masked,
        tl.int32 if is_wide else tl.int16,
        0x7FFFFFFF if is_wide else 0x7FFF,
        _TOKENS_OF_TILE if per_layer else min(_MOST_TOKENS, triton.next_power_of_2(tokens)),
        triton.next_power_of_2(count) if per_layer else 1,
    )
    seen = torch.uint8 if masked else torch.int64
    return _shift.warmup(dtype, torch.int64, seen, tokens, count, 1, 1, 1.0, *constants, grid=(1,)), constants


def _is_possible(acts_BTF: Tensor, value: str, fill: str, count: int) -> bool:
    return (
        acts_BTF.is_cuda
        and not torch.compiler.is_compiling()
        and acts_BTF.dtype in _DTYPES
        and acts_BTF.stride(2) == 1
        and fill in ("zero", "keep")
        and (value == "per_neuron" or count <= _MOST_NEURONS)
    )
