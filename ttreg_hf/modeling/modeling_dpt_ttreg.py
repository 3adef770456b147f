"""DPT with test-time registers in its backbone, of any family in `TOWERS`."""

from transformers import DPTForDepthEstimation

from .configuration_dpt_ttreg import DPTTTRegConfig
from .ttreg_base import TTRegModelMixin


class DPTTTRegForDepthEstimation(TTRegModelMixin, DPTForDepthEstimation):
    """`DPTForDepthEstimation` with test-time registers; the neck never sees them."""

    config_class = DPTTTRegConfig
    trunk_name = "backbone"
    is_backbone = True
