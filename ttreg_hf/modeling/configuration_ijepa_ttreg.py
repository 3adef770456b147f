"""I-JEPA's config with test-time registers."""

from typing import ClassVar

from huggingface_hub.dataclasses import strict
from transformers import IJepaConfig

from .ttreg_base import TTRegConfigMixin


@strict
class IJepaTTRegConfig(TTRegConfigMixin, IJepaConfig):
    """`IJepaConfig` and the fields of `TTRegConfigMixin`."""

    model_type = "ijepa_ttreg"
    auto_classes: ClassVar[dict[str, str]] = {
        "AutoConfig": "configuration_ijepa_ttreg.IJepaTTRegConfig",
        "AutoModel": "modeling_ijepa_ttreg.IJepaTTRegModel",
        "AutoModelForImageClassification": "modeling_ijepa_ttreg.IJepaTTRegForImageClassification",
    }
