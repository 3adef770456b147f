"""Reads and checks the files of `hub_configs/`: one JSON file per base model, which is data only."""

import json
import types
import typing
from collections.abc import Iterable
from dataclasses import MISSING, fields
from pathlib import Path

from ttreg_hf.publications import (
    PUBLISHED,
    SETTINGS_ONLY,
    CalibrationDataset,
    Expectation,
    KnownCheckpoint,
    PublishedOptions,
    Recipe,
    ReportedFigure,
)

_OPTION_VALUES = {
    "shift_value": ("per_neuron", "per_layer"),
    "shift_fill": ("zero", "mean", "outliers", "keep"),
}
# what can be expected of a checkpoint -> what the expectation has to name beside it
_QUANTITIES = {
    "norm_median": "layer",
    "norm_max": "layer",
    "paper_threshold": "layer",
    "first_outlier_layer": None,
    "rank": "neuron",
    "score_ratio": None,
    "published_in_top_k": None,
    "published_in_top_2k": None,
}
_JSON_NAMES = {str: "a string", int: "an integer", float: "a number", types.NoneType: "null"}


def read_known_checkpoints(folder: Path) -> dict[str, KnownCheckpoint]:
    """Reads and checks every JSON file of a folder; by base model, sorted.

    Errors: `ValueError` naming the file: not JSON, unknown or missing field, wrong type or value, a layer or neuron
    out of range, a neuron listed twice, a file whose name does not say its base model.
    """
    checkpoints = [read_known_checkpoint(path) for path in sorted(folder.glob("*.json"))]
    return {
        checkpoint.base_model: checkpoint for checkpoint in sorted(checkpoints, key=lambda known: known.base_model)
    }


def read_known_checkpoint(path: Path) -> KnownCheckpoint:
    """Reads and checks one file; errors as `read_known_checkpoints`."""
    try:
        checkpoint = _to_checkpoint(json.loads(path.read_text(encoding="utf-8")))
        _check_file_name(path, checkpoint)
        _check_values(checkpoint)
        _check_recipe(checkpoint)
        _check_register_neurons(checkpoint)
        for expectation in checkpoint.expectations:
            _check_expectation(checkpoint, expectation)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: the file must be valid JSON, got: {error}. Correct the file.") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return checkpoint


def _to_checkpoint(raw: object) -> KnownCheckpoint:
    values = _checked_object(raw, KnownCheckpoint, where="the file")
    parts = {"dataset": CalibrationDataset, "recipe": Recipe, "options": PublishedOptions}
    for name, part in parts.items():
        values[name] = part(**_checked_object(values[name], part, where=f"`{name}`"))
    values["register_neurons"] = _to_pairs(values["register_neurons"])
    values["expectations"] = _to_expectations(values.get("expectations", []))
    values["reported"] = _to_reported(values.get("reported", []))
    return KnownCheckpoint(**values)


def _to_expectations(raw: object) -> tuple[Expectation, ...]:
    if not isinstance(raw, list):
        raise ValueError(f"`expectations` must be a list of JSON objects, got {raw!r:.80}. Correct the list.")
    expectations = []
    for place, item in enumerate(raw):
        values = _checked_object(item, Expectation, where=f"`expectations` {place}")
        pair = values.get("neuron")
        if pair is not None and not _is_pair(pair):
            raise ValueError(f"`neuron` must be [layer, neuron] or null, got {pair!r:.80}. Correct the pair.")
        expectations.append(Expectation(**values | {"neuron": tuple(pair) if pair else None}))
    return tuple(expectations)


def _to_reported(raw: object) -> tuple[ReportedFigure, ...]:
    if not isinstance(raw, list):
        raise ValueError(f"`reported` must be a list of JSON objects, got {raw!r:.80}. Correct the list.")
    figures = [
        ReportedFigure(**_checked_object(item, ReportedFigure, where=f"`reported` {place}"))
        for place, item in enumerate(raw)
    ]
    for figure in figures:
        if not figure.source:
            raise ValueError(f"A reported figure must say who reports it, got no `source` for {figure.task}. Add it.")
    return tuple(figures)


def _checked_object(raw: object, cls: type, *, where: str) -> dict[str, typing.Any]:
    """A JSON object whose names are the fields of a dataclass and whose plain values have their types."""
    if not isinstance(raw, dict):
        raise ValueError(f"{where} must be a JSON object, got {raw!r}. Write {{...}}.")
    allowed = [field.name for field in fields(cls)]
    if unknown := sorted(set(raw) - set(allowed)):
        raise ValueError(
            f"{where} has the unknown field `{unknown[0]}`; known are {_list(allowed)}. Rename or remove it."
        )
    required = [field.name for field in fields(cls) if field.default is MISSING]
    if missing := [name for name in required if name not in raw]:
        raise ValueError(f"{where} must have the fields {_list(required)}, got no `{missing[0]}`. Add it.")
    hints = typing.get_type_hints(cls)
    for name, value in raw.items():
        _check_type(value, hints[name], name=name)
    return dict(raw)


def _check_type(value: object, hint: typing.Any, *, name: str) -> None:
    """Checks strings, numbers and null; objects and lists have their own checks."""
    allowed = [kind for kind in (typing.get_args(hint) or (hint,)) if kind in _JSON_NAMES]
    if not allowed or allowed == [types.NoneType]:
        return
    accepted = {*allowed, int} if float in allowed else set(allowed)
    if type(value) not in accepted:
        names = " or ".join(_JSON_NAMES[kind] for kind in allowed)
        raise ValueError(f"`{name}` must be {names}, got {value!r}. Correct the value.")


def _to_pairs(raw: object) -> tuple[tuple[int, int], ...] | None:
    if raw is None:
        return None
    if not isinstance(raw, list) or not raw or not all(_is_pair(pair) for pair in raw):
        raise ValueError(
            f"`register_neurons` must be [[layer, neuron], ...] or null, got {raw!r:.80}. Correct the list."
        )
    return tuple((layer, neuron) for layer, neuron in raw)


def _is_pair(pair: object) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and all(type(index) is int for index in pair)


def _check_file_name(path: Path, known: KnownCheckpoint) -> None:
    expected = known.base_model.replace("/", "--") + ".json"
    if path.name != expected:
        raise ValueError(f"a file must be named after its `base_model` {known.base_model!r}. Rename it to {expected}.")


def _check_values(known: KnownCheckpoint) -> None:
    expected = SETTINGS_ONLY if known.register_neurons is None else PUBLISHED
    if known.status != expected:
        raise ValueError(
            f"`status` must be {expected!r} here, got {known.status!r}. It is {PUBLISHED!r} with `register_neurons` "
            f"and {SETTINGS_ONLY!r} without: correct one of the two."
        )
    positive = {
        "num_hidden_layers": known.num_hidden_layers,
        "neurons_per_layer": known.neurons_per_layer,
        "num_images": known.recipe.num_images,
        "norm_threshold": known.recipe.norm_threshold,
        "top_k": known.recipe.top_k,
        "num_test_time_registers": known.options.num_test_time_registers,
    }
    for name, value in positive.items():
        if value is not None and value <= 0:
            raise ValueError(f"`{name}` must be above 0, got {value}. Correct the value.")
    for name, allowed in _OPTION_VALUES.items():
        choice = getattr(known.options, name)
        if choice is not None and choice not in allowed:
            raise ValueError(f"`{name}` must be one of {_list(allowed)}, got {choice!r}. Correct the value.")


def _check_recipe(known: KnownCheckpoint) -> None:
    recipe = known.recipe
    if recipe.settings() and not recipe.source:
        raise ValueError("`recipe` must say where its settings come from, got no `source`. Add it.")
    for name in ("detection_layer", "first_layer", "last_layer"):
        layer = getattr(recipe, name)
        if layer is not None and not 0 <= layer < known.num_hidden_layers:
            raise ValueError(f"`{name}` must be a layer of {_layers(known)}, got {layer}. Correct the layer.")


def _check_register_neurons(known: KnownCheckpoint) -> None:
    seen = set()
    for layer, neuron in known.register_neurons or ():
        if not 0 <= layer < known.num_hidden_layers:
            raise ValueError(
                f"`register_neurons` names layer {layer}, but this is {_layers(known)}. Correct the layer."
            )
        if not 0 <= neuron < known.neurons_per_layer:
            raise ValueError(
                f"`register_neurons` names neuron {neuron} of layer {layer}, but a layer has "
                f"{known.neurons_per_layer} neurons (0 to {known.neurons_per_layer - 1}). Correct the neuron."
            )
        if (layer, neuron) in seen:
            raise ValueError(
                f"`register_neurons` must not repeat a neuron, got [{layer}, {neuron}] twice. Remove one."
            )
        seen.add((layer, neuron))


def _check_expectation(known: KnownCheckpoint, expectation: Expectation) -> None:
    quantity = expectation.quantity
    if quantity not in _QUANTITIES:
        raise ValueError(f"`quantity` must be one of {_list(_QUANTITIES)}, got {quantity!r}. Correct the value.")
    if not expectation.source:
        raise ValueError(f"An expectation must say where it comes from, got no `source` for {quantity}. Add it.")
    for name in ("layer", "neuron"):
        if (getattr(expectation, name) is not None) != (_QUANTITIES[quantity] == name):
            wanted = f"`{_QUANTITIES[quantity]}`" if _QUANTITIES[quantity] else "neither `layer` nor `neuron`"
            raise ValueError(f"`quantity` {quantity} must come with {wanted}. Add or remove the field.")
    layer, neuron = expectation.neuron or (expectation.layer or 0, 0)
    if not (0 <= layer < known.num_hidden_layers and 0 <= neuron < known.neurons_per_layer):
        raise ValueError(
            f"an expectation names layer {layer} and neuron {neuron}, but this is {_layers(known)} and "
            f"{known.neurons_per_layer} neurons a layer. Correct them."
        )
    low, high = expectation.at_least, expectation.at_most
    if (low is None and high is None) or (low is not None and high is not None and low > high):
        raise ValueError(
            f"An expectation must have `at_least` <= `at_most`, or one of them; {quantity} has {low}, {high}."
        )
    if quantity.startswith("published") and known.register_neurons is None:
        raise ValueError(f"`quantity` {quantity} must come with `register_neurons`, got null. Remove the expectation.")


def _layers(known: KnownCheckpoint) -> str:
    return f"a model with {known.num_hidden_layers} layers (0 to {known.num_hidden_layers - 1})"


def _list(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
