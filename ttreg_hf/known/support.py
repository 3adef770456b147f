"""Which models can be given test-time registers, and why others cannot."""

from typing import Any

import transformers
from transformers import PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from ttreg_hf.known.auto_classes import stock_classes
from ttreg_hf.known.checkpoints import known_checkpoints
from ttreg_hf.known.refusals import REFUSED
from ttreg_hf.modeling import modeling_ttreg
from ttreg_hf.modeling.families import FAMILIES, base_model_type, trunk_names
from ttreg_hf.modeling.modeling_ttreg import TTRegModelMixin, patched_name

_NOT_AN_IMAGE_MODEL = "it reads no images"
_UNKNOWN = "it holds no vision tower of a known family (CONTRIBUTING.md shows how one becomes known)"
_NOT_OF_TRANSFORMERS = "its class is not one of transformers', which a stranger could load"
_CARRIED_CODE = (
    "it runs the code that its repository carries. Import ttreg_hf, and load it again without `trust_remote_code=True`"
)
WHERE_TO_LOOK = "docs/families.md lists the families that can"


def patched_class(model: PreTrainedModel, tower: str | None = None) -> Any:
    """The patched class of a stock model; a patched model's own.

    Args:
        model: stock or patched.
        tower: which of its vision towers is meant, where it holds several; by default what `model.config.tower` says.

    Raises:
        TypeError: no transformers model; says how to get at one that is wrapped.
        ValueError: the model cannot be patched; says why.
    """
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"`model` is a transformers model, got {type(model).__name__}. {_way_to_the_model(model)}")
    if isinstance(model, TTRegModelMixin):
        if tower not in (None, model.trunk_name):
            raise ValueError(
                f"A patched model keeps its vision tower, here {model.trunk_name!r}, got `tower={tower!r}`. Patch the "
                "base model to choose another."
            )
        return type(model)
    reason = _why_not(model, tower if tower is not None else getattr(model.config, "tower", None))
    if reason is not None:
        raise ValueError(
            f"{type(model).__name__} (model type {model.config.model_type!r}) cannot be given test-time registers: "
            f"{reason}. {WHERE_TO_LOOK}."
        )
    return getattr(modeling_ttreg, patched_name(type(model)))


def _way_to_the_model(given: Any) -> str:
    """What to do with something that is no transformers model, but may hold one."""
    if hasattr(given, "merge_and_unload"):  # PEFT's
        return "Give `model.merge_and_unload()`, or `model.get_base_model()` for the model without its adapters."
    for name in ("module", "_orig_mod"):  # of what trains in parallel, and of `torch.compile`
        if isinstance(getattr(given, name, None), PreTrainedModel):
            return f"Give the model inside, `model.{name}`, and wrap what you get."
    return "Load it with transformers' `AutoModel.from_pretrained`."


def _why_not(model: PreTrainedModel, tower: str | None) -> str | None:
    if type(model).__module__.startswith("transformers_modules."):  # where transformers puts such code
        is_patched = model.config.model_type.endswith("_ttreg")
        return _CARRIED_CODE if is_patched else _NOT_OF_TRANSFORMERS
    towers = trunk_names(model)
    if model.config.model_type in REFUSED or not towers:
        return _refusal(model.config) or (_UNKNOWN if _reads_images(model) else _NOT_AN_IMAGE_MODEL)
    if tower is not None and tower not in towers:
        return f"it holds no vision tower {tower!r}, but {', '.join(towers)}"
    if tower is None and len(towers) > 1:
        return f'it holds several vision towers ({", ".join(towers)}): say which with `tower="..."`'
    if getattr(transformers, type(model).__name__, None) is not type(model):
        return _NOT_OF_TRANSFORMERS
    return None


def _reads_images(model: PreTrainedModel) -> bool:
    return "image" in getattr(model, "input_modalities", ()) or "pixel" in (
        getattr(model, "main_input_name", "") or ""
    )


def why_not_config(config: Any) -> str | None:
    """Why a checkpoint with this config cannot be patched, as half a sentence; `None` if nothing speaks against it."""
    if base_model_type(config) not in REFUSED and tower_configs(config):
        return None
    return _refusal(config) or _UNKNOWN


def tower_configs(config: Any) -> list[Any]:
    """The parts of a config that describe a vision tower of a known family: itself, or what is inside it."""
    if base_model_type(config) in FAMILIES:
        return [config]
    parts = [getattr(config, name, None) for name in getattr(config, "sub_configs", ())]
    return [found for part in parts if part is not None for found in tower_configs(part)]


def _refusal(config: Any) -> str | None:
    """The known reason against a model with this config, or against a part of it, searched in depth."""
    if base_model_type(config) in REFUSED:
        return REFUSED[base_model_type(config)]
    parts = (getattr(config, name, None) for name in getattr(config, "sub_configs", ()))
    return next(filter(None, (_refusal(part) for part in parts if part is not None)), None)


def supported_model_types() -> list[str]:
    """transformers' `model_type` of every vision tower that can be patched, alone or inside another model."""
    return sorted(FAMILIES)


def stock_model_class(model_type: str) -> Any:
    """The bare stock class of a vision tower, such as `Dinov2Model` for `"dinov2"`.

    Raises:
        ValueError: the family is not supported.
    """
    if model_type not in FAMILIES:
        raise ValueError(f"{model_type!r} is not a supported family. {WHERE_TO_LOOK}.")
    return stock_classes(getattr(transformers, CONFIG_MAPPING_NAMES[model_type]))["AutoModel"]


def families_table() -> str:
    """The supported families as a Markdown table: `model_type`, bare class, tokens before the patches, evidence."""
    rows = ["| vision tower's `model_type` | bare class | prefix tokens | evidence |", "|---|---|---|---|"]
    for model_type, family in sorted(FAMILIES.items()):
        prefix = " + ".join(str(part).replace("num_register_tokens", "trained registers") for part in family.prefix)
        bare = stock_classes(getattr(transformers, CONFIG_MAPPING_NAMES[model_type])).get("AutoModel")
        name = f"`{patched_name(bare)}`" if bare else "inside another model only"
        found = [
            hub_id
            for hub_id, known in known_checkpoints().items()
            if known.family == model_type and known.register_neurons
        ]
        evidence = f"neurons published for {', '.join(found)}" if found else "passes the laws"
        rows.append(f"| `{model_type}` | {name} | {prefix or 0} | {evidence} |")
    return "\n".join(rows)
