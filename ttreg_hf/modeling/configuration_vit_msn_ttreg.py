"""ViT MSN's config with test-time registers."""

from typing import ClassVar

from huggingface_hub.dataclasses import strict
from transformers import ViTMSNConfig

from .ttreg_base import TTRegConfigMixin


@strict
class ViTMSNTTRegConfig(TTRegConfigMixin, ViTMSNConfig):
    """`ViTMSNConfig` and the fields of `TTRegConfigMixin`."""

    model_type = "vit_msn_ttreg"
    auto_classes: ClassVar[dict[str, str]] = {
        "AutoConfig": "configuration_vit_msn_ttreg.ViTMSNTTRegConfig",
        "AutoModel": "modeling_vit_msn_ttreg.ViTMSNTTRegModel",
        "AutoModelForImageClassification": "modeling_vit_msn_ttreg.ViTMSNTTRegForImageClassification",
    }
