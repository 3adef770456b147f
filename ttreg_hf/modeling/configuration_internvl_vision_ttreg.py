"""The config of InternVL's vision tower (InternViT) with test-time registers."""

from typing import ClassVar

from huggingface_hub.dataclasses import strict
from transformers import InternVLVisionConfig

from .ttreg_base import TTRegConfigMixin


@strict
class InternVLVisionTTRegConfig(TTRegConfigMixin, InternVLVisionConfig):
    """`InternVLVisionConfig` and the fields of `TTRegConfigMixin`."""

    model_type = "internvl_vision_ttreg"
    auto_classes: ClassVar[dict[str, str]] = {
        "AutoConfig": "configuration_internvl_vision_ttreg.InternVLVisionTTRegConfig",
        "AutoModel": "modeling_internvl_vision_ttreg.InternVLVisionTTRegModel",
    }
