"""Dataclasses from the JSON that `dataclasses.asdict` gives: nested, in tuples, or `None`."""

import dataclasses
import types
import typing
from typing import Any, TypeVar

T = TypeVar("T")


def from_json(kind: type[T], fields: Any) -> T:
    """The value of this type.

    Args:
        kind: a dataclass, a tuple type, an optional one, or a plain type.
        fields: what `json.loads` gave.

    Raises:
        TypeError: a dataclass has no such field, or lacks one.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        inner = next(argument for argument in arguments if argument is not type(None))
        return None if fields is None else from_json(inner, fields)  # pyrefly: ignore[bad-return]
    if origin is tuple:
        kinds = [arguments[0]] * len(fields) if arguments[-1] is Ellipsis else arguments
        return tuple(from_json(inner, value) for inner, value in zip(kinds, fields, strict=True))  # pyrefly: ignore[bad-return]
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        unknown = [name for name in fields if name not in hints]
        if unknown:
            raise TypeError(f"{kind.__name__} has no field {', '.join(unknown)}.")
        return kind(**{name: from_json(hints[name], value) for name, value in fields.items()})
    return fields
