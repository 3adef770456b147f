"""From a stock model to a patched one that shares its parameters."""

import copy
import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import PreTrainedModel

from ttreg_hf.known.checkpoints import known_checkpoint, known_checkpoints
from ttreg_hf.known.position_table import check_fixed_positions
from ttreg_hf.known.support import patched_class
from ttreg_hf.loading import as_model
from ttreg_hf.modeling.families import blocks_of_trunk, layout_of_trunk, trunk_name
from ttreg_hf.modeling.modeling_ttreg import CONSTANTS, TTRegModelMixin
from ttreg_hf.register_neuron import RegisterNeuron

_OF_THE_BASE = ("model_type", "auto_map", "architectures", "transformers_version")
_DEFAULTS = {"num_test_time_registers": 1, "shift_value": "per_neuron", "shift_fill": "zero", "shift_scale": 1.0}
NOWHERE = {"shift_scale": 0.0, "shift_fill": "zero"}
"""Options of token mode with which neurons are zeroed on the patches, and the token stays empty."""

Module = TypeVar("Module", bound=nn.Module)


@runtime_checkable
class FoundNeurons(Protocol):
    """What a `CalibrationResult` says about how a model is to be patched."""

    @property
    def register_neurons(self) -> tuple[RegisterNeuron, ...]:
        """Strongest first."""
        ...

    @property
    def fixed_positions(self) -> tuple[tuple[int, int], ...]:
        """Rows and columns of the position table that are spikes."""
        ...

    @property
    def shift_value(self) -> str:
        """What the registers get."""
        ...

    @property
    def constants(self) -> Tensor | None:
        """What the attentions of the last layers read in constant mode, `(L - l, D)`; `None` if not measured."""
        ...

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width, in pixels, that the neurons were found at."""
        ...

    def check_weights(self, model: PreTrainedModel, tower: str | None = None) -> None:
        """Refuse a model with other weights than those that the neurons were found in."""
        ...


def published_register_neurons(name_or_path: str) -> tuple[RegisterNeuron, ...]:
    """Register neurons that somebody published for a checkpoint, from `hub_configs/`.

    Scores are NaN: lists were published without them. This project has not verified them.

    Raises:
        ValueError: none are known; the checkpoints that have some are listed.
    """
    known = known_checkpoint(name_or_path)
    if known is None or not known.register_neurons:
        having = [name for name, checkpoint in known_checkpoints().items() if checkpoint.register_neurons]
        raise ValueError(
            f"No register neurons are published for {name_or_path!r}. Published lists exist for {', '.join(having)}. "
            "For another checkpoint find them with `calibrate` (`ttreg calibrate MODEL --output DIR`), and pass them "
            "as `register_neurons` (`--calibration DIR`)."
        )
    return tuple(RegisterNeuron(layer, neuron, float("nan")) for layer, neuron in known.register_neurons)


def base_name(model: PreTrainedModel) -> str:
    """Hub id or path of the stock checkpoint that a model, stock or patched, comes from; empty if it has none."""
    return str(getattr(model.config, "base_model_name_or_path", None) or model.name_or_path or "")


def add_test_time_registers(
    model: PreTrainedModel | str | Path,
    register_neurons: FoundNeurons | Iterable[RegisterNeuron | Sequence[int]] | None = None,
    *,
    num_test_time_registers: int | None = None,
    shift_value: str | None = None,
    shift_fill: str | None = None,
    shift_scale: float | None = None,
    output_registers: bool = False,
    test_time_register_mode: str = "token",
    constants: Tensor | None = None,
    fixed_positions: Iterable[Sequence[int]] | None = None,
    base_model_revision: str | None = None,
    tower: str | None = None,
) -> Any:
    """A patched model with the given model's weights, shared, not copied. The given model stays as it was.

    Args:
        model: a stock transformers model with a vision tower of a known family in it, bare, with a head or inside
            another model; or a patched one, whose neurons are replaced; or the Hub id or path of one.
        register_neurons: a `CalibrationResult` of these weights, with the options that it was found with;
            `RegisterNeuron`s or `[layer, neuron]` pairs, strongest first; `None` takes the published ones for
            `model.name_or_path`, with the options they were published with.
        num_test_time_registers: extra tokens, 1 by default; 0 gives the base model's outputs.
        shift_value: `"per_neuron"` (default) or `"per_layer"`.
        shift_fill: `"zero"` (default), `"mean"`, `"outliers"` or `"keep"`.
        shift_scale: factor on the moved value, 1 by default; 0 zeroes the neurons without moving them.
        output_registers: keep the registers in `hidden_states`, `attentions` and a bare model's `last_hidden_state`.
        test_time_register_mode: `"token"`, or `"constant"`: neurons are zeroed on the patches, no token is added, and
            the attentions of the last layers read one more row, the same for every image.
        constants: these rows, `(L - l, D)`, for the last `L - l` of `L` layers; a `CalibrationResult` has its own.
        fixed_positions: `[row, column]` of rows of the learned position table that are spikes: taken from the patches
            there, and the largest is what the registers start with. A `CalibrationResult` has its own. The table is
            square and added whole to the patches: not in Idefics, SmolVLM, RADIO, TIPSv2 and DINOv3.
        base_model_revision: commit that the base model was loaded from, for the record.
        tower: dotted path of the vision tower to patch, in a model that holds several; a patched model keeps its own.

    Returns:
        The patched twin of the model's class: same dtype, device, mode and attention implementation.

    Raises:
        TypeError: no transformers model, or one inside another object, such as `DistributedDataParallel`.
        ValueError: unsupported class, no published neurons, neurons or rows of a table that this model does not have,
            constant mode without constants, or a `CalibrationResult` of other weights, whose `register_neurons` can be
            passed all the same.
    """
    model = as_model(model, revision=base_model_revision)
    cls = patched_class(model, tower)
    tower = tower if tower is not None else getattr(model.config, "tower", None)
    options: dict[str, Any] = dict(_DEFAULTS)
    calibrated_patches = None
    if register_neurons is None:
        name = base_name(model)
        register_neurons = published_register_neurons(name)
        known = known_checkpoint(name)
        options |= known.options.settings() if known else {}
    elif isinstance(register_neurons, FoundNeurons):
        found, register_neurons = register_neurons, register_neurons.register_neurons
        found.check_weights(model, tower)
        options["shift_value"] = found.shift_value
        constants = found.constants if constants is None else constants
        fixed_positions = found.fixed_positions if fixed_positions is None else fixed_positions
        calibrated_patches = _num_patches(model, tower, found.image_size)
    given = {
        "num_test_time_registers": num_test_time_registers,
        "shift_value": shift_value,
        "shift_fill": shift_fill,
        "shift_scale": shift_scale,
    }
    options |= {name: value for name, value in given.items() if value is not None}
    options |= {"output_registers": output_registers, "calibrated_patches": calibrated_patches, "tower": tower}
    options["register_neurons"] = [list(map(_as_index, neuron)) for neuron in register_neurons]
    options["fixed_positions"] = _places(model, tower, fixed_positions or ())
    constants = constants if test_time_register_mode == "constant" else None
    options["test_time_register_mode"] = test_time_register_mode
    options["constant_first_layer"] = _constant_first_layer(model, tower, test_time_register_mode, constants)
    if not isinstance(model, TTRegModelMixin):
        options["base_model_name_or_path"] = model.name_or_path or None
        options["base_model_revision"] = base_model_revision
    return _patched(model, cls, _patched_config(model.config, cls.config_class, options), constants)


def patching_of(model: TTRegModelMixin) -> dict[str, Any]:
    """What `add_test_time_registers` takes, besides neurons, to patch another model as this one is patched."""
    config: Any = model.config
    return {
        "num_test_time_registers": config.num_test_time_registers,
        "shift_value": config.shift_value,
        "shift_fill": config.shift_fill,
        "shift_scale": config.shift_scale,
        "test_time_register_mode": config.test_time_register_mode,
        "constants": constants_of(model),
        "fixed_positions": config.fixed_positions,
    }


def moving_of(model: TTRegModelMixin) -> dict[str, Any]:
    """As `patching_of`, but the neurons' activation is moved to a token, also of a model in constant mode."""
    return patching_of(model) | {"test_time_register_mode": "token", "constants": None}


def zeroing_of(model: TTRegModelMixin) -> dict[str, Any]:
    """As `patching_of`, but the activation goes nowhere: the token stays, empty; in constant mode no row is read."""
    options = patching_of(model)
    if options["constants"] is not None:
        return options | {"constants": options["constants"][:0]}
    return options | NOWHERE


def constants_of(model: TTRegModelMixin) -> Tensor | None:
    """What the attentions of a patched model read in constant mode, `(L - l, D)`; `None` in token mode."""
    return getattr(model.get_submodule(model.trunk_name), CONSTANTS, None)


def shared_copy(model: Module, instead: Mapping[int, Any] | None = None) -> Module:
    """A copy of a model's modules, hooks and config around the same parameters and buffers.

    Args:
        model: to copy; it stays as it is.
        instead: by the `id` of an object inside the model, what the copy holds in its place.
    """
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, {**shared, **(instead or {})})


def _patched_config(base: Any, config_class: Any, options: dict[str, Any]) -> Any:
    """The base model's fields with these on top; towers keep their attention implementations.

    Raises:
        ValueError: a field that the config refuses.
    """
    fields = {name: value for name, value in base.to_dict().items() if name not in _OF_THE_BASE}
    try:
        config = config_class(**{**fields, **options})
    except StrictDataclassError as error:  # not a ValueError, though its cause is one
        raise ValueError(str(error.__cause__ or error)) from error
    config._attn_implementation = base._attn_implementation
    for name, tower in _towers(base).items():
        getattr(config, name)._attn_implementation = tower._attn_implementation
    return config


def place_constants(model: TTRegModelMixin, constants: Tensor | None) -> None:
    """Give a patched model these rows, in its own dtype and on its device; `None` takes them away."""
    trunk = model.get_submodule(model.trunk_name)
    trunk._buffers.pop(CONSTANTS, None)
    if constants is not None:
        weight = next(trunk.parameters())
        trunk.register_buffer(CONSTANTS, constants.detach().to(weight.device, weight.dtype))


def _constant_first_layer(model: Any, tower: str | None, mode: str, constants: Tensor | None) -> int:
    if mode != "constant":
        return 0
    if constants is None:
        raise ValueError(
            "Constant mode needs the rows that calibration measures; published neurons and pairs have none. Pass the "
            "`CalibrationResult` that `ttreg calibrate MODEL --output DIR` makes, or `constants` `(rows, channels)`."
        )
    trunk = model.get_submodule(trunk_name(model, tower))
    layers, channels = len(blocks_of_trunk(trunk)), trunk.config.hidden_size
    if constants.ndim != 2 or constants.shape[0] > layers or constants.shape[1] != channels:
        raise ValueError(
            f"`constants` is (rows, {channels}) for this model, with a row for each of the last layers and {layers} "
            f"at most, got {tuple(constants.shape)}. Calibrate this model."
        )
    return layers - len(constants)


def _patched(model: Any, cls: Any, config: Any, constants: Tensor | None) -> Any:
    with torch.device("meta"):
        patched = cls(config)  # for all that the constructor registers about its class
    configs = {id(model.config): config}
    configs |= {id(tower): getattr(config, name) for name, tower in _towers(model.config).items()}
    patched.__dict__.update(shared_copy(model, configs).__dict__)
    patched.name_or_path = ""  # nobody can load it from where the base came from; PEFT would write that down
    if isinstance(model, TTRegModelMixin):
        patched.place_register_neurons()
    else:
        patched.install_test_time_registers()
    place_constants(patched, constants)
    return patched


def _towers(config: Any) -> dict[str, Any]:
    found = {name: getattr(config, name, None) for name in config.sub_configs}
    return {name: tower for name, tower in found.items() if tower is not None}


def _places(model: Any, tower: str | None, places: Iterable[Sequence[Any]]) -> list[list[Any]]:
    found = [list(map(_as_index, place)) for place in places]
    if found:
        check_fixed_positions(model.get_submodule(trunk_name(model, tower)), found)
    return found


def _num_patches(model: Any, tower: str | None, image_size: tuple[int, int]) -> int:
    trunk = model.get_submodule(trunk_name(model, tower))
    sides = zip(image_size, layout_of_trunk(trunk).patch_size, strict=True)
    return math.prod(pixels // patch for pixels, patch in sides)


def _as_index(index: Any) -> Any:
    """An `int` of what numpy and torch call one; what is no whole number is left for the config to refuse."""
    try:
        return index if isinstance(index, bool) else operator.index(index)
    except TypeError:
        return index
