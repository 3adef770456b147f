"""The learned position table of a trunk.

Letters: `h`, `w` height and width of the table, `D` channels, `N` rows.
"""

import math
from typing import Any

from torch import Tensor

from ttreg_hf.modeling.families import family_of_trunk


def position_table(trunk: Any) -> Tensor | None:
    """Learned position embeddings of the patches, a view `(h, w, D)`; `None` where positions are rotary."""
    embeddings = trunk.get_submodule(family_of_trunk(trunk).embeddings)
    for name, parameter in embeddings.named_parameters():
        if "position" in name:
            rows = parameter.view(-1, parameter.shape[-1])
            side = math.isqrt(len(rows))
            return rows[len(rows) - side * side :].view(side, side, -1)  # (N, D) -> (h, w, D)
    return None
