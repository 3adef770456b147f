"""The learned position table of a trunk: where it is, and which rows of it can be taken away.

Letters: `h`, `w` height and width of the table, `D` channels, `N` rows.
"""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ttreg_hf.modeling.families import base_model_type, family_of_trunk

_NOT_ADDED_WHOLE = {
    "a row of the table is looked up for each patch, by where it lies in its image": (
        *("idefics2_vision", "idefics3_vision", "smolvlm_vision"),
    ),
    "a window of the table is cut out for each image": ("radio",),
    "the table is fitted to an image in another way than in all other families": ("tipsv2_vision_model",),
}


def position_table(trunk: Any) -> Tensor | None:
    """Learned position embeddings of the patches, a view `(h, w, D)`; `None` where positions are rotary."""
    table = table_parameter(trunk)
    return None if table is None else patch_rows(trunk, table)


def table_parameter(trunk: Any) -> Tensor | None:
    """The parameter that holds the table, and rows for prefix tokens in front of it."""
    named = trunk.get_submodule(family_of_trunk(trunk).embeddings).named_parameters()
    return next((parameter for name, parameter in named if name.startswith("position_embedding")), None)


def patch_rows(trunk: Any, table: Tensor) -> Tensor:
    """The rows of patches in a tensor like the parameter: `(..., P + N, D)` -> `(h, w, D)`, a view."""
    rows_ND = table.view(-1, table.shape[-1])
    height, width = _grid(trunk, len(rows_ND))
    return rows_ND[len(rows_ND) - height * width :].view(height, width, -1)


def why_not_taken(trunk: Any) -> str | None:
    """Why no row of a trunk's position table can be taken away; `None` where that can be done."""
    table = position_table(trunk)
    if table is None:
        return "it has no learned position table"
    if table.shape[0] != table.shape[1]:
        return f"its position table is not square, but {table.shape[0]} x {table.shape[1]}"
    model_type = base_model_type(trunk.config)
    return next((reason for reason, types in _NOT_ADDED_WHOLE.items() if model_type in types), None)


def check_fixed_positions(trunk: Any, places: Sequence[Sequence[Any]]) -> None:
    """Refuse places that no row of the table can be taken away at.

    Args:
        trunk: whose table it is.
        places: rows and columns; what is no pair of numbers is left to the config to refuse.

    Raises:
        ValueError: the trunk has no table from which rows can be taken, or its table has no such row or column.
    """
    reason = why_not_taken(trunk) if places else None
    if reason is not None:
        raise ValueError(
            f"`fixed_positions` names rows of a square position table that is added whole to the patches, got a "
            f"{trunk.config.model_type}: {reason}. Leave `fixed_positions` out."
        )
    table = position_table(trunk)
    for place in places:
        is_pair = len(place) == 2 and all(type(index) is int for index in place)
        if table is not None and is_pair and not all(0 <= index < len(table) for index in place):
            raise ValueError(
                f"`fixed_positions` names row and column of the position table, 0 to {len(table) - 1} in this model, "
                f"got {list(place)}. Calibrate this checkpoint, or count on its table's grid, not on the image's."
            )


def _grid(trunk: Any, num_rows: int) -> tuple[int, int]:
    """Of the table: that of images of the training's size; where the config names none, the table is square."""
    size, patch = getattr(trunk.config, "image_size", None), trunk.config.patch_size
    if size is not None:
        sizes, patches = ((each, each) if isinstance(each, int) else tuple(each) for each in (size, patch))
        height, width = (pixels // side for pixels, side in zip(sizes, patches, strict=True))
        if height * width <= num_rows:
            return height, width
    side = math.isqrt(num_rows)
    return side, side
