"""AIMv2's configs with test-time registers: of the vision tower, and of both towers."""

from typing import ClassVar

from huggingface_hub.dataclasses import strict
from transformers import Aimv2Config, Aimv2VisionConfig

from .ttreg_base import TTRegConfigMixin


@strict
class Aimv2VisionTTRegConfig(TTRegConfigMixin, Aimv2VisionConfig):
    """`Aimv2VisionConfig` and the fields of `TTRegConfigMixin`."""

    model_type = "aimv2_vision_model_ttreg"
    auto_classes: ClassVar[dict[str, str]] = {
        "AutoConfig": "configuration_aimv2_ttreg.Aimv2VisionTTRegConfig",
        "AutoModel": "modeling_aimv2_ttreg.Aimv2VisionTTRegModel",
    }


@strict
class Aimv2TTRegConfig(TTRegConfigMixin, Aimv2Config):
    """`Aimv2Config`, stock towers included, and the fields of `TTRegConfigMixin`."""

    model_type = "aimv2_ttreg"
    auto_classes: ClassVar[dict[str, str]] = {
        "AutoConfig": "configuration_aimv2_ttreg.Aimv2TTRegConfig",
        "AutoModel": "modeling_aimv2_ttreg.Aimv2TTRegModel",
    }
