"""DeiT's config with test-time registers."""

from typing import ClassVar

from huggingface_hub.dataclasses import strict
from transformers import DeiTConfig

from .ttreg_base import TTRegConfigMixin


@strict
class DeiTTTRegConfig(TTRegConfigMixin, DeiTConfig):
    """`DeiTConfig` and the fields of `TTRegConfigMixin`."""

    model_type = "deit_ttreg"
    auto_classes: ClassVar[dict[str, str]] = {
        "AutoConfig": "configuration_deit_ttreg.DeiTTTRegConfig",
        "AutoModel": "modeling_deit_ttreg.DeiTTTRegModel",
        "AutoModelForImageClassification": "modeling_deit_ttreg.DeiTTTRegForImageClassification",
        "DeiTForImageClassificationWithTeacher": "modeling_deit_ttreg.DeiTTTRegForImageClassificationWithTeacher",
    }
