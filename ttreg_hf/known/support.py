"""Which models can be given test-time registers, and why others cannot."""

from typing import Any

import transformers
from transformers import PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from ttreg_hf.modeling import modeling_ttreg
from ttreg_hf.modeling.families import FAMILIES, base_model_type, tower_configs, trunk_names
from ttreg_hf.modeling.modeling_ttreg import TTRegModelMixin, patched_name, stock_classes

# base models that cannot be patched, and why; a model type that is neither here nor in FAMILIES is just not known yet
REFUSED = {
    "beit": "its relative position bias is a table of fixed size for the tokens it was trained with",
    "data2vec-vision": "its relative position bias is a table of fixed size for the tokens it was trained with",
    "altclip": "the names of its text tower's weights hang on its model type, so patch its `AltCLIPVisionModel`",
    "mlcd": "its rotary position embedding counts all tokens, so one more would turn every patch",
    "mlcd_vision_model": "its rotary position embedding counts all tokens, so one more would turn every patch",
    "swin": "it attends within windows, so that no token is global",
    "swinv2": "it attends within windows, so that no token is global",
    "hiera": "it pools its tokens between stages, so that no token is global",
    "convnext": "it is convolutional: it has no tokens",
    "convnextv2": "it is convolutional: it has no tokens",
    "dinov3_convnext": "it is convolutional: it has no tokens",
    "resnet": "it is convolutional: it has no tokens",
    "timm_wrapper": "timm's modules are not transformers', so load a transformers version of the checkpoint",
    "vit_mae": "it drops patches at random, so load the checkpoint as a ViT",
}
_NOT_AN_IMAGE_MODEL = "it reads no images"
_UNKNOWN = "it holds no vision tower of a known family (CONTRIBUTING.md shows how one becomes known)"
_NOT_OF_TRANSFORMERS = "its class is not one of transformers', which a stranger could load"
WHERE_TO_LOOK = "`ttreg list` shows the families that can"


def patched_class(model: PreTrainedModel) -> Any:
    """The patched class of a stock model; a patched model's own.

    Raises:
        ValueError: the model cannot be patched; says why.
    """
    if isinstance(model, TTRegModelMixin):
        return type(model)
    reason = _why_not(model)
    if reason is not None:
        raise ValueError(
            f"{type(model).__name__} (model type {model.config.model_type!r}) cannot be given test-time registers: "
            f"{reason}. {WHERE_TO_LOOK}."
        )
    return getattr(modeling_ttreg, patched_name(type(model)))


def _why_not(model: PreTrainedModel) -> str | None:
    towers = trunk_names(model)
    if model.config.model_type in REFUSED:
        return REFUSED[model.config.model_type]
    if not towers:
        return _UNKNOWN if "image" in getattr(model, "input_modalities", ()) else _NOT_AN_IMAGE_MODEL
    if len(towers) > 1:
        return f"it holds several vision towers ({', '.join(towers)}), so patch one of them alone"
    if getattr(transformers, type(model).__name__, None) is not type(model):
        return _NOT_OF_TRANSFORMERS
    return None


def why_not_config(config: Any) -> str | None:
    """Why a checkpoint with this config cannot be patched, as half a sentence; `None` if nothing speaks against it."""
    model_type = base_model_type(config)
    return REFUSED.get(model_type) or (None if tower_configs(config) else _UNKNOWN)


def supported_model_types() -> list[str]:
    """transformers' `model_type` of every vision tower that can be patched, alone or inside another model."""
    return sorted(FAMILIES)


def stock_model_class(model_type: str) -> Any:
    """The bare stock class of a vision tower, such as `Dinov2Model` for `"dinov2"`.

    Raises:
        ValueError: the family is not supported.
    """
    if model_type not in FAMILIES:
        raise ValueError(f"{model_type!r} is not a supported family. Supported are {', '.join(sorted(FAMILIES))}.")
    return stock_classes(getattr(transformers, CONFIG_MAPPING_NAMES[model_type]))["AutoModel"]


def families_table() -> str:
    """The supported families as a Markdown table: `model_type`, bare class, tokens in front of the patches."""
    rows = ["| vision tower's `model_type` | bare class | prefix tokens |", "|---|---|---|"]
    for model_type, family in sorted(FAMILIES.items()):
        prefix = " + ".join(str(part).replace("num_register_tokens", "trained registers") for part in family.prefix)
        rows.append(f"| `{model_type}` | `{patched_name(stock_model_class(model_type))}` | {prefix or 0} |")
    return "\n".join(rows)
