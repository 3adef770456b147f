"""DINOv2's config with test-time registers."""

from typing import ClassVar

from huggingface_hub.dataclasses import strict
from transformers import Dinov2Config

from .ttreg_base import TTRegConfigMixin


@strict
class Dinov2TTRegConfig(TTRegConfigMixin, Dinov2Config):
    """`Dinov2Config` and the fields of `TTRegConfigMixin`."""

    model_type = "dinov2_ttreg"
    auto_classes: ClassVar[dict[str, str]] = {
        "AutoConfig": "configuration_dinov2_ttreg.Dinov2TTRegConfig",
        "AutoModel": "modeling_dinov2_ttreg.Dinov2TTRegModel",
        "AutoModelForImageClassification": "modeling_dinov2_ttreg.Dinov2TTRegForImageClassification",
        "AutoBackbone": "modeling_dinov2_ttreg.Dinov2TTRegBackbone",
    }
