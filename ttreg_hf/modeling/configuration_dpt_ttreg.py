"""DPT's config with test-time registers in its backbone."""

from typing import ClassVar

from huggingface_hub.dataclasses import strict
from transformers import DPTConfig

from .ttreg_base import TTRegConfigMixin


@strict
class DPTTTRegConfig(TTRegConfigMixin, DPTConfig):
    """`DPTConfig`, stock backbone included, and the fields of `TTRegConfigMixin`."""

    model_type = "dpt_ttreg"
    auto_classes: ClassVar[dict[str, str]] = {
        "AutoConfig": "configuration_dpt_ttreg.DPTTTRegConfig",
        "AutoModelForDepthEstimation": "modeling_dpt_ttreg.DPTTTRegForDepthEstimation",
    }
