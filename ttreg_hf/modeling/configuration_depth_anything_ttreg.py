"""Depth Anything's config with test-time registers in its backbone."""

from typing import ClassVar

from huggingface_hub.dataclasses import strict
from transformers import DepthAnythingConfig

from .ttreg_base import TTRegConfigMixin


@strict
class DepthAnythingTTRegConfig(TTRegConfigMixin, DepthAnythingConfig):
    """`DepthAnythingConfig`, stock backbone included, and the fields of `TTRegConfigMixin`."""

    model_type = "depth_anything_ttreg"
    auto_classes: ClassVar[dict[str, str]] = {
        "AutoConfig": "configuration_depth_anything_ttreg.DepthAnythingTTRegConfig",
        "AutoModelForDepthEstimation": "modeling_depth_anything_ttreg.DepthAnythingTTRegForDepthEstimation",
    }
