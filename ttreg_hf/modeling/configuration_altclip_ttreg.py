"""The config of AltCLIP's vision tower with test-time registers."""

from typing import ClassVar

from huggingface_hub.dataclasses import strict
from transformers import AltCLIPVisionConfig

from .ttreg_base import TTRegConfigMixin


@strict
class AltCLIPVisionTTRegConfig(TTRegConfigMixin, AltCLIPVisionConfig):
    """`AltCLIPVisionConfig` and the fields of `TTRegConfigMixin`."""

    model_type = "altclip_vision_model_ttreg"
    auto_classes: ClassVar[dict[str, str]] = {
        "AutoConfig": "configuration_altclip_ttreg.AltCLIPVisionTTRegConfig",
        "AutoModel": "modeling_altclip_ttreg.AltCLIPVisionTTRegModel",
    }
