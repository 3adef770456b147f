"""Outlier patches read as the mean of their ordinary neighbours: what people do by hand to features that they have.

It mends what is read of a model (final patches, states, attention onto patches), and nothing inside it: that is what
people do who see holes in their features. CLS, and ordinary patches that attended to outliers, stay as they are.

Letters: `B` images, `D` channels, `T`, `Q` tokens, `N` patches, `h`, `w` patches in height and width.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from ttreg_hf.modeling.registers import TokenLayout

if TYPE_CHECKING:
    from ttreg_hf.measuring.recorder import Recording


def interpolate_outliers(maps_BDhw: Tensor, outliers_Bhw: Tensor) -> Tensor:
    """Maps in which each outlier patch is the mean of the ordinary ones among its eight neighbours.

    Where none of the eight is ordinary, the nearest larger square that holds an ordinary patch counts. An image of
    outliers alone stays as it is.

    Args:
        maps_BDhw: features of the patches.
        outliers_Bhw: which are outliers, bool.
    """
    left_B1hw = outliers_Bhw[:, None]
    ordinary_B1hw = ~left_B1hw
    known_BDhw, interpolated = torch.where(left_B1hw, 0, maps_BDhw), maps_BDhw
    counted = ordinary_B1hw.to(maps_BDhw.dtype)
    for reach in range(1, max(outliers_Bhw.shape[1:])):
        if not left_B1hw.any():
            break
        found = _square_sums(counted, reach)
        is_found = left_B1hw & (found > 0)
        interpolated = torch.where(is_found, _square_sums(known_BDhw, reach) / found.clamp(min=1), interpolated)
        left_B1hw = left_B1hw & ~is_found
    return interpolated


def _square_sums(maps_BDhw: Tensor, reach: int) -> Tensor:
    """Of so many patches to each side; there is nothing beyond the border."""
    return avg_pool2d(maps_BDhw, 2 * reach + 1, stride=1, padding=reach, divisor_override=1)


def interpolated(
    recording: "Recording", outliers_BT: Tensor, layout: TokenLayout, grid: tuple[int, int]
) -> "Recording":
    """A recording whose states, attention onto patches and final patches are read so; norms and feature as they were.

    Args:
        recording: of one batch.
        outliers_BT: which tokens are outliers, bool.
        layout: of the tokens.
        grid: height and width of the images in pixels.
    """
    outliers_Bhw = layout.patch_map(outliers_BT.unsqueeze(-1), *grid).squeeze(1)

    def of_tokens(states_BTD: Tensor) -> Tensor:
        patches_BDhw = interpolate_outliers(layout.patch_map(states_BTD, *grid), outliers_Bhw)
        before_BTD = states_BTD[:, : layout.patches.start]
        return torch.cat([before_BTD, patches_BDhw.flatten(2).transpose(1, 2)], dim=1)  # (B, D, h, w) -> (B, N, D)

    final = recording.patches_BDhw
    return replace(
        recording,
        states={name: of_tokens(states_BTD) for name, states_BTD in recording.states.items()},
        attentions={
            # what each token gives to a patch is a channel of it; laid out as before, sums have the same last bit
            layer: of_tokens(attention_BQT.mT).mT.contiguous()
            for layer, attention_BQT in recording.attentions.items()
        },
        patches_BDhw=None if final is None else interpolate_outliers(final, outliers_Bhw),
    )
