"""The two features of an image that are compared and measured: one vector for it, and one for each patch.

Letters: `B` images, `T` tokens, `D` channels, `h`, `w` patches in height and width.
"""

from typing import Any

from torch import Tensor

from ttreg_hf.measuring.tower import VisionTower


def final_patches(tower: VisionTower, outputs: Any, grid: tuple[int, int]) -> Tensor:
    """`(B, D, h, w)`: the patches that heads read, or a backbone's last feature map.

    Args:
        tower: that gave the outputs.
        outputs: of its trunk.
        grid: height and width of the images in pixels.
    """
    features = outputs["feature_maps"][-1] if "feature_maps" in outputs else outputs["last_hidden_state"]
    return features if features.ndim == 4 else tower.output_layout.patch_map(features, *grid)


def pooled_feature(tower: VisionTower, outputs: Any, grid: tuple[int, int]) -> Tensor:
    """`(B, D)` float32: CLS after the final norm, or what a pooling head gives; without either the mean patch.

    A `pooler` that many checkpoints lack (ViT's layer on CLS) does not count: it may be random.

    Args:
        tower: that gave the outputs.
        outputs: of its trunk.
        grid: height and width of the images in pixels.
    """
    pooled = outputs.get("pooler_output")
    if pooled is not None and not hasattr(tower.trunk, "pooler"):
        return pooled.float()
    layout = tower.output_layout
    if "feature_maps" in outputs or not layout.num_prefix_tokens:
        return final_patches(tower, outputs, grid).float().mean((2, 3))
    return outputs["last_hidden_state"][:, layout.prefix][:, 0].float()
