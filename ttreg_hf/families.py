"""Which transformers classes have a patched twin, and where their parts are; read from the modeling files."""

import functools
import inspect
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ttreg_hf.modeling import all_model_classes, model_classes
from ttreg_hf.modeling.test_time_registers import TokenLayout
from ttreg_hf.modeling.ttreg_base import Family, TTRegModelMixin, num_prefix_tokens

# base models that cannot be patched, and why; a model type that is neither here nor supported is just not known yet
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
_OTHER_HEAD = "this class of the family has no patched version, so patch one that has"
_UNKNOWN = "nobody has written down where its parts are; CONTRIBUTING.md shows how"


@functools.cache
def _patched_classes() -> dict[type[PreTrainedModel], type[TTRegModelMixin]]:
    """By stock class."""
    return {cls.stock_class(): cls for classes in all_model_classes().values() for cls in classes.values()}


def supported_model_types() -> list[str]:
    """transformers' `model_type` of every base model that can be patched."""
    return sorted({_model_type(stock) for stock in _patched_classes()})


def patched_class(model: PreTrainedModel) -> type[TTRegModelMixin]:
    """The patched class of a stock model; a patched model's own.

    Raises:
        ValueError: the class is not supported; says why, and names the supported ones.
    """
    if isinstance(model, TTRegModelMixin):
        return type(model)
    patched = _patched_classes()
    if type(model) not in patched:
        names = ", ".join(sorted(cls.__name__ for cls in patched))
        reads_images = "image" in getattr(model, "input_modalities", ())
        reason = why_not(model.config.model_type) if reads_images else _NOT_AN_IMAGE_MODEL
        raise ValueError(
            f"{type(model).__name__} (model type {model.config.model_type!r}) cannot be given test-time registers: "
            f"{reason}. Supported are {names}."
        )
    patched[type(model)].family_of(model.config)
    return patched[type(model)]


def why_not(model_type: str) -> str:
    """Why a model of this type cannot be patched, as half a sentence."""
    return REFUSED.get(model_type) or (_OTHER_HEAD if model_type in supported_model_types() else _UNKNOWN)


def stock_model_class(model_type: str) -> type[PreTrainedModel]:
    """The bare stock class of a base model type, such as `Dinov2Model` for `"dinov2"`.

    Raises:
        ValueError: the family is not supported, or is not a vision tower's.
    """
    bare = {
        _model_type(stock): stock
        for stock, patched in _patched_classes().items()
        if patched.trunk_name == "" and not patched.is_backbone
    }
    if model_type not in bare:
        raise ValueError(f"{model_type!r} is not a supported family. Supported are {', '.join(sorted(bare))}.")
    return bare[model_type]


def loader_of(model_type: str) -> Any:
    """What loads a checkpoint of a base model type as a whole: the stock class, or if it is patched the Auto class.

    transformers' Auto classes do not know every stock class: `MetaClip2VisionModel` has none.
    """
    _, heads = model_classes(f"{model_type.removesuffix('_ttreg')}_ttreg")
    auto_class, patched = next(iter(heads.items()))
    return auto_class if model_type.endswith("_ttreg") else patched.stock_class()


def families_table() -> str:
    """The supported families as a Markdown table: `model_type`, patched classes, tokens in front of the patches."""
    rows = ["| base `model_type` | patched classes | prefix tokens |", "|---|---|---|"]
    for config_class, heads in sorted(all_model_classes().items(), key=lambda entry: entry[0].model_type):
        classes = list(dict.fromkeys(heads.values()))
        names = ", ".join(f"`{cls.__name__}`" for cls in classes)
        trained = " + trained registers" if hasattr(config_class, "num_register_tokens") else ""
        base = config_class.model_type.removesuffix("_ttreg")
        family = classes[0].family
        prefix = f"{family.num_prefix_tokens}{trained}" if family else "the tower's"
        rows.append(f"| `{base}` | {names} | {prefix} |")
    return "\n".join(rows)


def family_of(model: PreTrainedModel) -> Family:
    """Where the model's trunk keeps its parts."""
    return patched_class(model).family_of(model.config)


def trunk_of(model: PreTrainedModel) -> Any:
    """The part of a model that holds embeddings and blocks: the model itself, or what its head reads."""
    return model.get_submodule(patched_class(model).trunk_name)


def blocks_of(model: PreTrainedModel) -> list[nn.Module]:
    """The transformer blocks, in order; a block's index is its layer."""
    blocks: Any = trunk_of(model).get_submodule(family_of(model).blocks)
    return list(blocks)


def inner_layout(model: PreTrainedModel) -> TokenLayout:
    """Layout of the tokens that the blocks see now, whatever the outputs keep."""
    if isinstance(model, TTRegModelMixin) and model.registers.active:
        return model.registers.layout
    config = trunk_of(model).config
    size = config.patch_size
    prefix = num_prefix_tokens(family_of(model), config)
    return TokenLayout(prefix, 0, (size, size) if isinstance(size, int) else tuple(size))


def trunk_output_layout(model: PreTrainedModel) -> TokenLayout:
    """Layout of the tokens that the trunk gives out now: of a model with a head always without test-time registers."""
    if isinstance(model, TTRegModelMixin) and trunk_of(model) is model:
        return model.token_layout
    return replace(inner_layout(model), num_test_time_registers=0)


def image_inputs(model: PreTrainedModel, pixel_values: Tensor) -> dict[str, Any]:
    """What a model's trunk takes to see images of one size.

    Args:
        model: a supported model.
        pixel_values: `(B, 3, H, W)`; any size of whole patches.

    Returns:
        Arguments of the trunk's `forward`, in the model's dtype; SigLIP 2 (NaFlex) reads flattened patches, of which
        none is padding. Where positions have to be interpolated for this size, they are.

    Raises:
        ValueError: SigLIP 2, and height or width is not a whole number of patches.
    """
    arguments = inspect.signature(trunk_of(model).forward).parameters
    pixel_values = pixel_values.to(model.dtype)  # AIMv2 does not do it itself
    if "spatial_shapes" not in arguments:
        inputs: dict[str, Any] = {"pixel_values": pixel_values}
        if "interpolate_pos_encoding" in arguments and not _is_own_size(model, pixel_values):
            inputs["interpolate_pos_encoding"] = True
        return inputs
    height, width = inner_layout(model).patch_size
    if pixel_values.shape[-2] % height or pixel_values.shape[-1] % width:
        raise ValueError(
            f"{type(model).__name__} takes images of whole patches of {height} x {width} pixels, got "
            f"{pixel_values.shape[-2]} x {pixel_values.shape[-1]}. Use the checkpoint's own image processor."
        )
    patches = pixel_values.unfold(2, height, height).unfold(3, width, width)  # (B, 3, h, w, p, p)
    count, grid = len(patches), patches.shape[2:4]
    return {
        "pixel_values": patches.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2),  # (B, N, p * p * 3)
        "pixel_attention_mask": pixel_values.new_ones(count, grid[0] * grid[1], dtype=torch.long),
        "spatial_shapes": torch.tensor([list(grid)] * count, device=pixel_values.device),
    }


def _is_own_size(model: PreTrainedModel, pixel_values: Tensor) -> bool:
    size = trunk_of(model).config.image_size
    return tuple(pixel_values.shape[-2:]) == ((size, size) if isinstance(size, int) else tuple(size))


def _model_type(stock: Any) -> str:
    return stock.config_class.model_type
