"""SigLIP's configs with test-time registers: of the vision tower, and of both towers."""

from typing import ClassVar

from huggingface_hub.dataclasses import strict
from transformers import SiglipConfig, SiglipVisionConfig

from .ttreg_base import TTRegConfigMixin


@strict
class SiglipVisionTTRegConfig(TTRegConfigMixin, SiglipVisionConfig):
    """`SiglipVisionConfig` and the fields of `TTRegConfigMixin`."""

    model_type = "siglip_vision_model_ttreg"
    auto_classes: ClassVar[dict[str, str]] = {
        "AutoConfig": "configuration_siglip_ttreg.SiglipVisionTTRegConfig",
        "AutoModel": "modeling_siglip_ttreg.SiglipVisionTTRegModel",
    }


@strict
class SiglipTTRegConfig(TTRegConfigMixin, SiglipConfig):
    """`SiglipConfig`, stock towers included, and the fields of `TTRegConfigMixin`."""

    model_type = "siglip_ttreg"
    auto_classes: ClassVar[dict[str, str]] = {
        "AutoConfig": "configuration_siglip_ttreg.SiglipTTRegConfig",
        "AutoModel": "modeling_siglip_ttreg.SiglipTTRegModel",
        "AutoModelForImageClassification": "modeling_siglip_ttreg.SiglipTTRegForImageClassification",
        "AutoModelForZeroShotImageClassification": "modeling_siglip_ttreg.SiglipTTRegModel",
    }
