"""A tiny random model of any type that transformers has, with nothing known of it but its name, and its outputs."""

import inspect
from dataclasses import fields
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from ttreg_hf.known.refusals import REFUSED

SIDE, PATCH, LAYERS = 16, 4, 3
PATCHES = (SIDE // PATCH) ** 2
TINY = {
    **dict.fromkeys(("hidden_size", "embed_dim", "width", "d_model"), 16),
    **dict.fromkeys(("num_hidden_layers", "depth", "num_layers", "encoder_layers"), LAYERS),
    **dict.fromkeys(("num_attention_heads", "num_heads", "encoder_attention_heads"), 2),
    **dict.fromkeys(("intermediate_size", "encoder_ffn_dim"), 40),
    **{"image_size": SIDE, "patch_size": PATCH},
}


class NotAFamily(ValueError):
    """Why a kind of model cannot be given test-time registers."""


def tiny_model(model_type: str, *, backbone: bool = False, changed: dict[str, Any] | None = None) -> PreTrainedModel:
    """A small random model of a type, in eval mode: bare, or its backbone.

    Raises:
        NotAFamily: transformers has none.
    """
    if model_type in REFUSED:
        raise NotAFamily(REFUSED[model_type])
    if model_type not in CONFIG_MAPPING_NAMES:
        raise NotAFamily(f"transformers {transformers.__version__} has no model type {model_type!r}")
    config_class = getattr(transformers, CONFIG_MAPPING_NAMES[model_type])
    names = {field.name for field in fields(config_class)}
    given = {name: value for name, value in {**TINY, **(changed or {})}.items() if name in names}
    try:
        config = _config(config_class, given)
    except Exception as error:
        raise NotAFamily(f"its config takes none of the usual fields: {str(error).splitlines()[-1]}") from error
    config._attn_implementation = "eager"
    if hasattr(config, "out_indices"):
        config.out_indices = [1, LAYERS]
    prefix = config_class.__name__.removesuffix("Config")
    exported = (getattr(transformers, name) for name in dir(transformers) if name.startswith(prefix))
    models = [each for each in exported if isinstance(each, type) and issubclass(each, PreTrainedModel)]
    models = [each for each in models if each.config_class is config_class and "PreTrained" not in each.__name__]
    models = [each for each in models if "pixel_values" in inspect.signature(each.forward).parameters]
    models = [each for each in models if each.__name__.endswith("Backbone") == backbone]
    if not models:
        raise NotAFamily(f"no class of {model_type!r} that transformers exports reads `pixel_values`")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(0)
        try:
            model = min(models, key=lambda each: len(each.__name__))(config).eval()
        except Exception as error:
            raise NotAFamily(f"no tiny model of it can be made: {str(error).splitlines()[0]}") from error
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def _config(config_class: Any, given: dict[str, Any]) -> Any:
    try:
        return config_class(**given)
    except StrictDataclassError:  # some want height and width
        return config_class(**{**given, "image_size": [SIDE, SIDE]})


@torch.no_grad()
def run_tiny(
    model: Any, *, count: int = 2, padding: float | None = None, mask: dict[str, Tensor] | None = None
) -> Any:
    """Outputs for random images, the same at every call, with hidden states and attentions.

    Args:
        model: a tiny one, stock or patched, or its trunk.
        count: of images, two at most.
        padding: value of the pixels of the last row of patches; `None`: random as all others.
        mask: further arguments of the model.
    """
    images = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))[:count]
    if padding is not None:
        images[:, :, -PATCH:] = padding
    return model(images, output_hidden_states=True, output_attentions=True, **(mask or {}))
