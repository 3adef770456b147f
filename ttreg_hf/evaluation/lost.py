"""LOST: the box of one object in an image, from its patch features alone, and whether it is right.

Letters: `N` patches, `D` channels, `h`, `w` patches in height and width, `n` boxes.

Source: Simeoni et al. 2021 (arXiv 2109.14279), section 3. Written from the paper. The bias is Darcet et al.'s (arXiv
2309.16588): models differ in the similarity that their patches have anyway.
"""

from typing import Any

import numpy as np
from scipy import ndimage
from torch import Tensor, nn

MOST_SEEDS = 100
"""The paper's `k`: that many patches of lowest degree may join the seed."""
RIGHT = 0.5
"""The intersection over union with a true box above which a box is right."""


def discover_object(
    features_hwD: Tensor, *, normalize: bool = False, bias: float = 0.0, most_seeds: int = MOST_SEEDS
) -> tuple[float, float, float, float]:
    """The box of one object.

    The seed is the patch that is similar to the fewest others: objects are smaller than the background. Patches of
    low degree that are similar to the seed join it; all patches that are similar to these on the whole are the
    object, as far as they are connected with the seed.

    Args:
        features_hwD: of the patches of one image.
        normalize: divide features by their L2 norm, so that similarities are cosines.
        bias: added to every similarity; two patches are similar if theirs is 0 or more.
        most_seeds: patches that are looked at for joining the seed.

    Returns:
        Left, top, right and bottom, as shares of the image's width and height.
    """
    height, width = features_hwD.shape[:2]
    features_ND = features_hwD.flatten(0, 1)
    if normalize:
        features_ND = nn.functional.normalize(features_ND, dim=1)
    similarities_NN = features_ND @ features_ND.T + bias
    degrees_N = (similarities_NN >= 0).sum(1)
    of_low_degree = degrees_N.argsort(stable=True)[:most_seeds]
    seed = int(of_low_degree[0])
    similarities_NN[seed, seed].clamp_(min=0)  # with a negative bias it may not even be similar to itself
    seeds = of_low_degree[similarities_NN[seed, of_low_degree] >= 0]
    of_object_N = similarities_NN[:, seeds].sum(1) >= 0
    of_object_N[seed] = True
    components, _ = ndimage.label(of_object_N.reshape(height, width).cpu().numpy())
    rows, columns = np.nonzero(components == components[divmod(seed, width)])
    return (
        float(columns.min() / width),
        float(rows.min() / height),
        float((columns.max() + 1) / width),
        float((rows.max() + 1) / height),
    )


def largest_overlap(box: Any, boxes_n4: Any) -> float:
    """Largest intersection over union of a box with any of some boxes; 0 if there are none.

    Args:
        box: left, top, right, bottom.
        boxes_n4: in the same units.
    """
    if not len(boxes_n4):
        return 0.0
    box = np.asarray(box)
    sides_n2 = np.minimum(box[2:], boxes_n4[:, 2:]) - np.maximum(box[:2], boxes_n4[:, :2])
    shared_n = sides_n2.clip(min=0).prod(1)
    areas_n = (boxes_n4[:, 2:] - boxes_n4[:, :2]).prod(1)
    return float((shared_n / ((box[2:] - box[:2]).prod() + areas_n - shared_n)).max())
