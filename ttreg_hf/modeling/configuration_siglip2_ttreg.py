"""SigLIP 2's configs (NaFlex) with test-time registers: of the vision tower, and of both towers."""

from typing import ClassVar

from huggingface_hub.dataclasses import strict
from transformers import Siglip2Config, Siglip2VisionConfig

from .ttreg_base import TTRegConfigMixin


@strict
class Siglip2VisionTTRegConfig(TTRegConfigMixin, Siglip2VisionConfig):
    """`Siglip2VisionConfig` and the fields of `TTRegConfigMixin`."""

    model_type = "siglip2_vision_model_ttreg"
    auto_classes: ClassVar[dict[str, str]] = {
        "AutoConfig": "configuration_siglip2_ttreg.Siglip2VisionTTRegConfig",
        "AutoModel": "modeling_siglip2_ttreg.Siglip2VisionTTRegModel",
    }


@strict
class Siglip2TTRegConfig(TTRegConfigMixin, Siglip2Config):
    """`Siglip2Config`, stock towers included, and the fields of `TTRegConfigMixin`."""

    model_type = "siglip2_ttreg"
    auto_classes: ClassVar[dict[str, str]] = {
        "AutoConfig": "configuration_siglip2_ttreg.Siglip2TTRegConfig",
        "AutoModel": "modeling_siglip2_ttreg.Siglip2TTRegModel",
        "AutoModelForImageClassification": "modeling_siglip2_ttreg.Siglip2TTRegForImageClassification",
        "AutoModelForZeroShotImageClassification": "modeling_siglip2_ttreg.Siglip2TTRegModel",
    }
