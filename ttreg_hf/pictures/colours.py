"""Feature vectors as colours, and values as places on one colour scale that all panels of a picture share.

Letters: `h`, `w` patches in height and width, `D` channels.
"""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.colors import LogNorm, Normalize
from torch import Tensor, nn

_COLOUR_PERCENTILES = (0.01, 0.99)
COLOUR_MAPS = {"norms": "magma", "attention": "viridis", "cosines": "RdBu_r"}
_LOG_SCALE_FROM = 8.0  # highest value over lowest
_SMALLEST_SHARE = 1e-5  # of attention
_ORDINARY_DEVIATIONS = 4.0  # robust standard deviations; patches farther out do not choose the colours


def pca_colours(features_list: Sequence[Tensor]) -> list[Tensor]:
    """Patch features of one image as colours, with one basis and one scale for all variants given.

    The first three principal components become red, green and blue. Basis and scale (1st to 99th percentile) are taken
    from the ordinary patches of all variants together, so that a few outlier tokens do not use up the colours; they
    are drawn in the same basis, clipped.

    Args:
        features_list: `(h, w, D)` each, such as before and after. Sizes may differ, D not.

    Returns:
        `(h, w, 3)` each, float32 from 0 to 1.
    """
    samples = torch.cat([features.flatten(0, 1) for features in features_list]).double()  # (h, w, D) -> (n, D)
    centre_D = samples.median(dim=0).values
    ordinary = samples[_is_ordinary((samples - centre_D).norm(dim=1))]
    centre_D = ordinary.mean(dim=0)
    basis_D3 = _principal_directions(ordinary - centre_D)
    projected = (ordinary - centre_D) @ basis_D3
    low, high = (torch.quantile(projected, share, dim=0) for share in _COLOUR_PERCENTILES)
    width = (high - low).clamp(min=1e-12)
    return [
        (((features.double() - centre_D) @ basis_D3 - low) / width).clamp(0, 1).float() for features in features_list
    ]


def _is_ordinary(distances: Tensor) -> Tensor:
    """Not far from the median, in robust standard deviations."""
    median = distances.median()
    deviation = 1.4826 * (distances - median).abs().median()
    return distances <= median + _ORDINARY_DEVIATIONS * deviation


def _principal_directions(centred: Tensor) -> Tensor:
    """The three directions of largest variance, `(D, 3)`; the sign makes each one's largest entry positive."""
    with torch.random.fork_rng(devices=[]):  # a randomised method: a full one takes seconds for 1536 channels
        torch.manual_seed(0)
        _, _, directions = torch.svd_lowrank(centred, q=min(8, *centred.shape), niter=8)
    directions = directions[:, :3]
    directions = nn.functional.pad(directions, (0, 3 - directions.shape[1]))
    largest = directions.gather(0, directions.abs().argmax(dim=0, keepdim=True))
    return directions * torch.where(largest < 0, -1.0, 1.0)


def shared_scale(maps: Sequence[np.ndarray], *, at_least: float = 0.0) -> Normalize:
    """One scale for all maps, from their lowest value to the highest, or to `at_least`.

    Logarithmic if the values differ much: a linear scale would show one patch and darkness.
    """
    low = min(float(values.min()) for values in maps)
    high = max(at_least, *(float(values.max()) for values in maps))
    if low > 0 and high / low >= _LOG_SCALE_FROM:
        return LogNorm(low, high, clip=True)
    return Normalize(low, high if high > low else low + 1.0, clip=True)


def drawn_attention(shares: Tensor) -> np.ndarray:
    """Shares of the attention in percent, at least 0.001 %, so that a logarithmic scale takes them."""
    return 100 * shares.numpy().clip(min=_SMALLEST_SHARE)
