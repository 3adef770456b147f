"""CLIP's configs with test-time registers: of the vision tower, and of both towers."""

from typing import ClassVar

from huggingface_hub.dataclasses import strict
from transformers import CLIPConfig, CLIPVisionConfig

from .ttreg_base import TTRegConfigMixin


@strict
class CLIPVisionTTRegConfig(TTRegConfigMixin, CLIPVisionConfig):
    """`CLIPVisionConfig` and the fields of `TTRegConfigMixin`."""

    model_type = "clip_vision_model_ttreg"
    auto_classes: ClassVar[dict[str, str]] = {
        "AutoConfig": "configuration_clip_ttreg.CLIPVisionTTRegConfig",
        "AutoModel": "modeling_clip_ttreg.CLIPVisionTTRegModel",
        "CLIPVisionModelWithProjection": "modeling_clip_ttreg.CLIPVisionTTRegModelWithProjection",
    }


@strict
class CLIPTTRegConfig(TTRegConfigMixin, CLIPConfig):
    """`CLIPConfig`, stock towers included, and the fields of `TTRegConfigMixin`."""

    model_type = "clip_ttreg"
    auto_classes: ClassVar[dict[str, str]] = {
        "AutoConfig": "configuration_clip_ttreg.CLIPTTRegConfig",
        "AutoModel": "modeling_clip_ttreg.CLIPTTRegModel",
        "AutoModelForImageClassification": "modeling_clip_ttreg.CLIPTTRegForImageClassification",
        "AutoModelForZeroShotImageClassification": "modeling_clip_ttreg.CLIPTTRegModel",
    }
