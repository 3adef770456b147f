"""MetaCLIP 2's configs with test-time registers: of the vision tower, and of both towers."""

from typing import ClassVar

from huggingface_hub.dataclasses import strict
from transformers import MetaClip2Config, MetaClip2VisionConfig

from .ttreg_base import TTRegConfigMixin


@strict
class MetaClip2VisionTTRegConfig(TTRegConfigMixin, MetaClip2VisionConfig):
    """`MetaClip2VisionConfig` and the fields of `TTRegConfigMixin`."""

    model_type = "metaclip_2_vision_model_ttreg"
    auto_classes: ClassVar[dict[str, str]] = {
        "AutoConfig": "configuration_metaclip_2_ttreg.MetaClip2VisionTTRegConfig",
        "AutoModel": "modeling_metaclip_2_ttreg.MetaClip2VisionTTRegModel",
        "MetaClip2VisionModelWithProjection": "modeling_metaclip_2_ttreg.MetaClip2VisionTTRegModelWithProjection",
    }


@strict
class MetaClip2TTRegConfig(TTRegConfigMixin, MetaClip2Config):
    """`MetaClip2Config`, stock towers included, and the fields of `TTRegConfigMixin`."""

    model_type = "metaclip_2_ttreg"
    auto_classes: ClassVar[dict[str, str]] = {
        "AutoConfig": "configuration_metaclip_2_ttreg.MetaClip2TTRegConfig",
        "AutoModel": "modeling_metaclip_2_ttreg.MetaClip2TTRegModel",
        "AutoModelForImageClassification": "modeling_metaclip_2_ttreg.MetaClip2TTRegForImageClassification",
        "AutoModelForZeroShotImageClassification": "modeling_metaclip_2_ttreg.MetaClip2TTRegModel",
    }
