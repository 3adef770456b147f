"""From a stock model to a patched one that shares its parameters."""

import copy
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedModel

from ttreg_hf.families import inner_layout, patched_class
from ttreg_hf.known_checkpoints import known_checkpoint, known_checkpoints
from ttreg_hf.modeling.ttreg_base import TTRegModelMixin
from ttreg_hf.register_neuron import RegisterNeuron

_OF_THE_BASE = ("model_type", "auto_map", "architectures", "transformers_version")
_DEFAULTS = {"num_test_time_registers": 1, "shift_value": "per_neuron", "shift_fill": "zero", "shift_scale": 1.0}


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
            "For another checkpoint find them with `calibrate` and pass them as `register_neurons`."
        )
    return tuple(RegisterNeuron(layer, neuron, float("nan")) for layer, neuron in known.register_neurons)


def add_test_time_registers(
    model: PreTrainedModel,
    register_neurons: Iterable[RegisterNeuron | Sequence[int]] | None = None,
    *,
    num_test_time_registers: int | None = None,
    shift_value: str | None = None,
    shift_fill: str | None = None,
    shift_scale: float | None = None,
    output_registers: bool = False,
    base_model_revision: str | None = None,
    calibrated_image_size: tuple[int, int] | None = None,
) -> PreTrainedModel:
    """A patched model with the given model's weights, shared, not copied. The given model stays as it was.

    Args:
        model: a stock transformers ViT, with or without a head, or a patched one, whose neurons are replaced.
        register_neurons: `RegisterNeuron`s or `[layer, neuron]` pairs, strongest first; `None` takes the published
            ones for `model.name_or_path`, with the options they were published with.
        num_test_time_registers: extra tokens, 1 by default; 0 gives the base model's outputs.
        shift_value: `"per_neuron"` (default) or `"per_layer"`.
        shift_fill: `"zero"` (default), `"mean"`, `"outliers"` or `"keep"`.
        shift_scale: factor on the moved value, 1 by default; 0 zeroes the neurons without moving them.
        output_registers: keep the registers in `hidden_states`, `attentions` and a bare model's `last_hidden_state`.
        base_model_revision: commit that the base model was loaded from, for the record.
        calibrated_image_size: height and width, in pixels, that the neurons were found at; one much larger or smaller
            is warned of.

    Returns:
        The patched twin of the model's class: same dtype, device, mode and attention implementation.

    Raises:
        ValueError: unsupported class, no published neurons, or neurons that this model does not have.
    """
    cls: Any = patched_class(model)
    options: dict[str, Any] = dict(_DEFAULTS)
    if register_neurons is None:
        register_neurons = published_register_neurons(str(model.name_or_path))
        known = known_checkpoint(str(model.name_or_path))
        options |= known.options.settings() if known else {}
    given = {
        "num_test_time_registers": num_test_time_registers,
        "shift_value": shift_value,
        "shift_fill": shift_fill,
        "shift_scale": shift_scale,
    }
    options |= {name: value for name, value in given.items() if value is not None}

    base_config = model.config
    fields = {name: value for name, value in base_config.to_dict().items() if name not in _OF_THE_BASE}
    fields |= options
    fields["register_neurons"] = [_as_pair(neuron) for neuron in register_neurons]
    fields["output_registers"] = output_registers
    fields["calibrated_patches"] = None
    if calibrated_image_size is not None:
        sides = zip(calibrated_image_size, inner_layout(model).patch_size, strict=True)
        fields["calibrated_patches"] = math.prod(pixels // patch for pixels, patch in sides)
    if not isinstance(model, TTRegModelMixin):
        fields["base_model_name_or_path"] = model.name_or_path or None
        fields["base_model_revision"] = base_model_revision
    try:
        config = cls.config_class(**fields)
    except StrictDataclassError as error:  # not a ValueError, though its cause is one
        raise ValueError(str(error.__cause__ or error)) from error
    config._name_or_path = model.name_or_path
    config._attn_implementation = base_config._attn_implementation
    towers = {name: getattr(base_config, name) for name in base_config.sub_configs}
    for name, tower in towers.items():
        getattr(config, name)._attn_implementation = tower._attn_implementation

    with torch.device("meta"):
        patched = cls(config)  # for all that the constructor registers about its class
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    configs = {id(base_config): config} | {id(tower): getattr(config, name) for name, tower in towers.items()}
    twin = copy.deepcopy(model, {**shared, **configs})
    patched.__dict__.update(twin.__dict__)
    if isinstance(model, TTRegModelMixin):
        patched.place_register_neurons()
    else:
        patched.install_test_time_registers()
    return patched


def _as_pair(neuron: RegisterNeuron | Sequence[int]) -> list[int]:
    return [neuron.layer, neuron.neuron] if isinstance(neuron, RegisterNeuron) else list(neuron)
