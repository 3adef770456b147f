"""The suitcase: model code that is installed here and copied to the Hub as it is.

Files in this folder import torch, transformers, huggingface_hub, the standard library and each other
(`from .name import x`), nothing else. This `__init__` does not travel.

Importing this imports no family: each is imported when it is first asked for, by name or by a checkpoint of its type.
"""

import functools
import importlib
from typing import Any

import transformers
from transformers import AutoConfig

# model type -> where its config class is, which says where its model classes are
CONFIG_CLASSES = {
    "aimv2_ttreg": "configuration_aimv2_ttreg.Aimv2TTRegConfig",
    "aimv2_vision_model_ttreg": "configuration_aimv2_ttreg.Aimv2VisionTTRegConfig",
    "altclip_vision_model_ttreg": "configuration_altclip_ttreg.AltCLIPVisionTTRegConfig",
    "clip_ttreg": "configuration_clip_ttreg.CLIPTTRegConfig",
    "clip_vision_model_ttreg": "configuration_clip_ttreg.CLIPVisionTTRegConfig",
    "deit_ttreg": "configuration_deit_ttreg.DeiTTTRegConfig",
    "depth_anything_ttreg": "configuration_depth_anything_ttreg.DepthAnythingTTRegConfig",
    "dinov2_ttreg": "configuration_dinov2_ttreg.Dinov2TTRegConfig",
    "dinov2_with_registers_ttreg": "configuration_dinov2_with_registers_ttreg.Dinov2WithRegistersTTRegConfig",
    "dinov3_vit_ttreg": "configuration_dinov3_vit_ttreg.DINOv3ViTTTRegConfig",
    "dpt_ttreg": "configuration_dpt_ttreg.DPTTTRegConfig",
    "ijepa_ttreg": "configuration_ijepa_ttreg.IJepaTTRegConfig",
    "internvl_vision_ttreg": "configuration_internvl_vision_ttreg.InternVLVisionTTRegConfig",
    "llava_next_ttreg": "configuration_llava_next_ttreg.LlavaNextTTRegConfig",
    "llava_ttreg": "configuration_llava_ttreg.LlavaTTRegConfig",
    "metaclip_2_ttreg": "configuration_metaclip_2_ttreg.MetaClip2TTRegConfig",
    "metaclip_2_vision_model_ttreg": "configuration_metaclip_2_ttreg.MetaClip2VisionTTRegConfig",
    "siglip2_ttreg": "configuration_siglip2_ttreg.Siglip2TTRegConfig",
    "siglip2_vision_model_ttreg": "configuration_siglip2_ttreg.Siglip2VisionTTRegConfig",
    "siglip_ttreg": "configuration_siglip_ttreg.SiglipTTRegConfig",
    "siglip_vision_model_ttreg": "configuration_siglip_ttreg.SiglipVisionTTRegConfig",
    "vit_msn_ttreg": "configuration_vit_msn_ttreg.ViTMSNTTRegConfig",
    "vit_ttreg": "configuration_vit_ttreg.ViTTTRegConfig",
}


def register_with_auto_classes() -> None:
    """Let `AutoModel.from_pretrained` find the patched classes in this process, without `trust_remote_code`."""
    for model_type in CONFIG_CLASSES:
        AutoConfig.register(model_type, _stand_in(model_type), exist_ok=True)


@functools.cache
def model_classes(model_type: str) -> tuple[Any, dict[Any, Any]]:
    """A patched model type's config class, and its model classes, all known to the Auto classes from now on.

    Returns:
        Model classes by the Auto class that loads them, or by the stock class where none does; the first one loads a
        checkpoint where none is asked for.
    """
    config_class = _load(CONFIG_CLASSES[model_type])
    paths = {auto: path for auto, path in config_class.auto_classes.items() if auto != "AutoConfig"}
    heads = {getattr(transformers, auto): _load(path) for auto, path in paths.items()}
    AutoConfig.register(model_type, config_class, exist_ok=True)
    for auto_class, model_class in heads.items():
        if auto_class.__name__.startswith("Auto"):
            auto_class.register(config_class, model_class, exist_ok=True)
    return config_class, heads


@functools.cache
def all_model_classes() -> dict[Any, dict[Any, Any]]:
    """`model_classes` of every type, by config class."""
    return dict(map(model_classes, CONFIG_CLASSES))


def _stand_in(model_type: str) -> type:
    class ConfigToCome:
        """What `AutoConfig` knows of a model type until it meets a checkpoint of it."""

        def __new__(cls, *args: Any, **fields: Any) -> Any:
            return model_classes(model_type)[0](*args, **fields)

        @classmethod
        def from_dict(cls, *args: Any, **options: Any) -> Any:
            return model_classes(model_type)[0].from_dict(*args, **options)

    return ConfigToCome


def _load(path: str) -> Any:
    module, _, name = path.partition(".")
    return getattr(importlib.import_module(f".{module}", __name__), name)


def __getattr__(name: str) -> Any:
    """A class by its name: what stands before `TTReg` says which config it goes with."""
    wanted = f"{name.partition('TTReg')[0]}TTRegConfig"
    for model_type, path in CONFIG_CLASSES.items():
        if path.endswith(f".{wanted}"):
            config_class, heads = model_classes(model_type)
            found = {cls.__name__: cls for cls in (config_class, *heads.values())}
            if name in found:
                return found[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
