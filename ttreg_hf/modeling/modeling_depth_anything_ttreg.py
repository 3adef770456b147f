"""Depth Anything with test-time registers in its backbone, of any family in `TOWERS`."""

from transformers import DepthAnythingForDepthEstimation

from .configuration_depth_anything_ttreg import DepthAnythingTTRegConfig
from .ttreg_base import TTRegModelMixin


class DepthAnythingTTRegForDepthEstimation(TTRegModelMixin, DepthAnythingForDepthEstimation):
    """`DepthAnythingForDepthEstimation` with test-time registers; the neck never sees them."""

    config_class = DepthAnythingTTRegConfig
    trunk_name = "backbone"
    is_backbone = True
