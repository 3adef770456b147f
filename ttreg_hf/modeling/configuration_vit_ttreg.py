"""ViT's config with test-time registers."""

from typing import ClassVar

from huggingface_hub.dataclasses import strict
from transformers import ViTConfig

from .ttreg_base import TTRegConfigMixin


@strict
class ViTTTRegConfig(TTRegConfigMixin, ViTConfig):
    """`ViTConfig` and the fields of `TTRegConfigMixin`."""

    model_type = "vit_ttreg"
    auto_classes: ClassVar[dict[str, str]] = {
        "AutoConfig": "configuration_vit_ttreg.ViTTTRegConfig",
        "AutoModel": "modeling_vit_ttreg.ViTTTRegModel",
        "AutoModelForImageClassification": "modeling_vit_ttreg.ViTTTRegForImageClassification",
    }
