"""The same sums in one small Triton kernel: it reads only outlier tokens, and the host never waits for their number.

Importing this fails with `ImportError` where there is no Triton.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 512


@triton.jit
# pyrefly: ignore[implicit-any-parameter, unannotated-return]
def _sum_magnitudes(acts, outliers, sums, num_tokens, num_neurons, image_stride, token_stride, block: tl.constexpr):
    image = tl.program_id(0).to(tl.int64)
    neurons = tl.program_id(1) * block + tl.arange(0, block)
    inside = neurons < num_neurons
    total = tl.zeros((block,), dtype=tl.float32)
    for token in range(num_tokens):
        if tl.load(outliers + image * num_tokens + token) != 0:
            row = acts + image * image_stride + token * token_stride
            total += tl.abs(tl.load(row + neurons, mask=inside, other=0.0).to(tl.float32))
    tl.store(sums + image * num_neurons + neurons, total, mask=inside)


def outlier_sums(acts: Sequence[Tensor], outliers_BT: Tensor) -> Tensor:
    """Sum of |activation| over the outlier tokens of each image, `(L, B, F)` float32.

    Args:
        acts: one `(B, T, F)` a layer, of one shape, on a CUDA device.
        outliers_BT: which tokens count, bool.
    """
    images, tokens, neurons = acts[0].shape
    sums_LBF = torch.empty(len(acts), images, neurons, dtype=torch.float32, device=outliers_BT.device)
    marks_BT = outliers_BT.contiguous().view(torch.uint8)
    grid = (images, triton.cdiv(neurons, _BLOCK))
    for sums_BF, acts_BTF in zip(sums_LBF, acts, strict=True):
        rows = acts_BTF if acts_BTF.stride(2) == 1 else acts_BTF.contiguous()
        _sum_magnitudes[grid](rows, marks_BT, sums_BF, tokens, neurons, rows.stride(0), rows.stride(1), block=_BLOCK)
    return sums_LBF
