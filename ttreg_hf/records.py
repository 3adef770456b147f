"""Types of dataclasses: read from the JSON that `dataclasses.asdict` gives and nothing else, or given in Python."""

import dataclasses
import json
import numbers
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
_PLAIN = {str: "a string", int: "a whole number", float: "a number", bool: "true or false"}


def read_json(path: Path, *, remedy: str) -> dict[str, Any]:
    """The object that a JSON file holds.

    Args:
        path: of a file that is there.
        remedy: what to do if it is damaged; ends the message.

    Raises:
        ValueError: it holds something else.
    """
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} must hold a JSON object, but it cannot be read ({error}). {remedy}") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{path} must hold a JSON object, got {fields!r:.80}. {remedy}")
    return fields


def from_json(kind: type[T], fields: Any, *, name: str = "") -> T:
    """The value of this type.

    Args:
        kind: a dataclass, a tuple or dict type, an optional one, a plain type, or `Any`.
        fields: what `json.loads` gave.
        name: of the value, for messages.

    Raises:
        TypeError: a value of another type, or a dataclass that has no such field, or lacks one.
    """
    return _value(kind, fields, name or getattr(kind, "__name__", "the value"))


def _value(kind: Any, value: Any, name: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (types.UnionType, typing.Union):
        return _one_of(arguments, value, name)
    if origin is tuple:
        return _tuple(arguments, value, name)
    if origin is dict:
        _check(isinstance(value, dict), name, "an object", value)
        return {key: _value(arguments[1], item, f"{name}.{key}") for key, item in value.items()}
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, value, name)
    is_right = type(value) is kind or (kind is float and type(value) is int)
    _check(is_right, name, _PLAIN[kind], value)
    return value


def _one_of(kinds: tuple[Any, ...], value: Any, name: str) -> Any:
    if value is None and types.NoneType in kinds:
        return None
    others = [kind for kind in kinds if kind is not types.NoneType]
    fitting = [kind for kind in others if type(value) is kind]
    return _value((fitting or others)[0], value, name)


def _tuple(kinds: tuple[Any, ...], value: Any, name: str) -> Any:
    _check(isinstance(value, (list, tuple)), name, "a list", value)
    if kinds[-1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    _check(len(value) == len(kinds), name, f"a list of {len(kinds)}", value)
    return tuple(_value(kind, item, f"{name}[{at}]") for at, (kind, item) in enumerate(zip(kinds, value, strict=True)))


def _dataclass(kind: Any, value: Any, name: str) -> Any:
    _check(isinstance(value, dict), name, "an object", value)
    hints = typing.get_type_hints(kind)
    known = [field for field in dataclasses.fields(kind) if field.init]
    if unknown := sorted(set(value) - {field.name for field in known}):
        raise TypeError(f"{name} has no field `{unknown[0]}`; it has {', '.join(field.name for field in known)}.")
    for field in known:
        is_needed = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if is_needed and field.name not in value:
            raise TypeError(f"{name} must have a field `{field.name}`, got none.")
    return kind(**{key: _value(hints[key], item, f"{name}.{key}") for key, item in value.items()})


def _check(is_right: bool, name: str, wanted: str, value: Any) -> None:
    if not is_right:
        raise TypeError(f"{name} must be {wanted}, got {value!r:.80}.")


def check_types(settings: Any) -> None:
    """Nothing, if every field of a dataclass holds what its annotation says; for its `__post_init__`.

    Numpy's numbers count as such, a whole number as a number, and a list as a tuple; true and false are no numbers.

    Raises:
        TypeError: a value of another type; the field is named.
    """
    for name, kind in typing.get_type_hints(type(settings)).items():
        if typing.get_origin(kind) is typing.ClassVar:
            continue
        value = getattr(settings, name)
        if not _is_of(kind, value):
            raise TypeError(f"`{name}` is {_in_words(kind)}, got {value!r:.80}.")


def _is_of(kind: Any, value: Any) -> bool:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return True
    if origin in (types.UnionType, typing.Union):
        return any(_is_of(each, value) for each in arguments)
    if origin is tuple:
        return isinstance(value, (tuple, list)) and all(_is_of(arguments[0], item) for item in value)
    if kind in _NUMBERS:
        return isinstance(value, _NUMBERS[kind]) and not isinstance(value, bool)
    return isinstance(value, origin or kind)


_NUMBERS = {int: numbers.Integral, float: numbers.Real}


def _in_words(kind: Any) -> str:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_in_words(each) for each in arguments)
    if origin is tuple:
        return f"a tuple, each item {_in_words(arguments[0])}"
    return {types.NoneType: "None", **_PLAIN}.get(kind, f"a {getattr(kind, '__name__', kind)}")
