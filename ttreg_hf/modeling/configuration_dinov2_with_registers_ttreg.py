"""The config of DINOv2 with trained registers, with test-time registers."""

from typing import ClassVar

from huggingface_hub.dataclasses import strict
from transformers import Dinov2WithRegistersConfig

from .ttreg_base import TTRegConfigMixin


@strict
class Dinov2WithRegistersTTRegConfig(TTRegConfigMixin, Dinov2WithRegistersConfig):
    """`Dinov2WithRegistersConfig` and the fields of `TTRegConfigMixin`."""

    model_type = "dinov2_with_registers_ttreg"
    auto_classes: ClassVar[dict[str, str]] = {
        "AutoConfig": "configuration_dinov2_with_registers_ttreg.Dinov2WithRegistersTTRegConfig",
        "AutoModel": "modeling_dinov2_with_registers_ttreg.Dinov2WithRegistersTTRegModel",
        "AutoModelForImageClassification": (
            "modeling_dinov2_with_registers_ttreg.Dinov2WithRegistersTTRegForImageClassification"
        ),
        "AutoBackbone": "modeling_dinov2_with_registers_ttreg.Dinov2WithRegistersTTRegBackbone",
    }
