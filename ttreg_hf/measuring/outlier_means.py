"""Mean |activation| of every neuron on an image's outlier tokens, the only tokens that are read.

Letters: `L` layers, `B` images, `T` tokens, `F` neurons, `M` outlier tokens of the batch.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

try:
    from ttreg_hf.kernels.outlier_means_kernel import outlier_sums
except ImportError:  # no Triton on this platform
    outlier_sums = None


def outlier_means(acts: Sequence[Tensor], outliers_BT: Tensor) -> Tensor:
    """Mean magnitude over the outlier tokens of each image, for each layer's activations.

    On a GPU nothing is copied to the host, and the host does not wait.

    Args:
        acts: one `(B, T, F)` a layer, any float dtype.
        outliers_BT: which tokens count, bool.

    Returns:
        `(L, B, F)` float32; 0 for an image without outliers.
    """
    sum_magnitudes = _plain_sums if outlier_sums is None or not outliers_BT.is_cuda else outlier_sums
    return sum_magnitudes(acts, outliers_BT) / outliers_BT.sum(1).clamp_min(1)[:, None]


def _plain_sums(acts: Sequence[Tensor], outliers_BT: Tensor) -> Tensor:
    image_M, token_M = outliers_BT.nonzero(as_tuple=True)
    images, _, neurons = acts[0].shape
    sums_LBF = torch.zeros(len(acts), images, neurons, device=outliers_BT.device)
    for sums_BF, acts_BTF in zip(sums_LBF, acts, strict=True):
        sums_BF.index_add_(0, image_M, acts_BTF[image_M, token_M].abs().float())
    return sums_LBF
