"""The image column of a data set: which one it is, and how its cells are had undecoded.

Images, bytes and links are read as they are stored, whatever view of the data set was given; of a list of images the
first one counts; numbers are read as arrays. A data set with a transform gives what that makes.
"""

import functools
import operator
from collections.abc import Callable
from typing import Any

_USUAL = "image"  # where types do not tell
_TRANSFORMED = "pixel_values"


def undecoded_column(dataset: Any, image_column: str | None) -> tuple[Any, Callable[[Any], Any]]:
    """A data set whose rows are had without decoding an image, where that can be, and what gives the image of a row.

    Args:
        dataset: a `datasets` dataset, map-style or streaming.
        image_column: as given; found if there is just one with images.

    Raises:
        ValueError: no such column, or none or several with images.
    """
    if has_transform(dataset):
        return dataset, functools.partial(_transformed, column=image_column)
    column, names = image_column or _image_column(dataset), dataset.column_names
    if names is not None and column not in names:
        raise ValueError(f"`image_column` is a column of the data set, got {column!r}. It has {', '.join(names)}.")
    feature: Any = (dataset.features or {}).get(column)
    if feature is None:  # a stream behind `map`, which does not know its types
        return dataset, operator.itemgetter(column)
    dataset = dataset.select_columns([column])
    if _is_list_of_images(feature):  # as Arrow: a cast would copy a table
        return dataset.with_format("arrow"), functools.partial(_first_of_list, column=column)
    if is_image(feature):
        undecoded = dataset.with_format(None).cast_column(column, type(feature)(decode=False))
        return undecoded, operator.itemgetter(column)
    return dataset.with_format(None if _is_stored(feature) else "numpy"), operator.itemgetter(column)


def has_transform(dataset: Any) -> bool:
    """Whether rows of a table are what a function of the user makes of them (`with_transform`)."""
    form = getattr(dataset, "format", None)
    return isinstance(form, dict) and form.get("type") == "custom"


def is_image(feature: Any) -> bool:
    """Whether this is a type of images in `datasets`, which need not be installed or loaded for this."""
    return type(feature).__name__ == "Image"


def _is_list_of_images(feature: Any) -> bool:
    return is_image(getattr(feature, "feature", None))


def _is_binary(feature: Any) -> bool:
    return getattr(feature, "dtype", None) in ("binary", "large_binary")


def _is_stored(feature: Any) -> bool:
    """Whether cells are bytes, paths or links, or dicts of them."""
    is_text = getattr(feature, "dtype", None) in ("string", "large_string")
    return isinstance(feature, dict) or _is_binary(feature) or is_text


def _image_column(dataset: Any) -> str:
    features, names = dataset.features or {}, dataset.column_names or []
    kinds = ([name for name, feature in features.items() if is_kind(feature)] for is_kind in _IN_THIS_ORDER)
    found = next(filter(None, kinds), [_USUAL] if _USUAL in names else [])
    if len(found) == 1:
        return found[0]
    raise ValueError(
        f"The data set needs one image column, got {', '.join(found) or 'none'}; its columns are "
        f"{', '.join(names) or 'not named'}. "
        "Name it with `image_column` (`--image-column`)."
    )


_IN_THIS_ORDER = (is_image, _is_list_of_images, _is_binary)


def _transformed(row: Any, *, column: str | None) -> Any:
    """The image of a row that a transform made; if no column was named, the usual ones are tried."""
    for name in (_USUAL, _TRANSFORMED) if column is None else (column,):
        if name in row:
            return row[name]
    looked_for = column or f"{_USUAL} or {_TRANSFORMED}"
    raise ValueError(
        f"The transform of the data set gives {', '.join(row)}, and no {looked_for}. Name the column with "
        "`image_column`, or give the data set without its transform: `dataset.with_format(None)`."
    )


def _first_of_list(table: Any, *, column: str) -> Any:
    cell = table.column(column)[0].as_py()
    return cell[0] if cell else None
