"""DINOv3's config with test-time registers."""

from typing import ClassVar

from huggingface_hub.dataclasses import strict
from transformers import DINOv3ViTConfig

from .ttreg_base import TTRegConfigMixin


@strict
class DINOv3ViTTTRegConfig(TTRegConfigMixin, DINOv3ViTConfig):
    """`DINOv3ViTConfig` and the fields of `TTRegConfigMixin`."""

    model_type = "dinov3_vit_ttreg"
    auto_classes: ClassVar[dict[str, str]] = {
        "AutoConfig": "configuration_dinov3_vit_ttreg.DINOv3ViTTTRegConfig",
        "AutoModel": "modeling_dinov3_vit_ttreg.DINOv3ViTTTRegModel",
        "AutoBackbone": "modeling_dinov3_vit_ttreg.DINOv3ViTTTRegBackbone",
    }
