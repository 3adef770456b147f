"""LLaVA with test-time registers in its vision tower, of any family in `TOWERS`."""

from transformers import LlavaForConditionalGeneration, LlavaModel

from .configuration_llava_ttreg import LlavaTTRegConfig
from .ttreg_base import TTRegModelMixin


class LlavaTTRegModel(TTRegModelMixin, LlavaModel):
    """`LlavaModel` with test-time registers; the projector never sees them."""

    config_class = LlavaTTRegConfig
    trunk_name = "vision_tower"


class LlavaTTRegForConditionalGeneration(TTRegModelMixin, LlavaForConditionalGeneration):
    """`LlavaForConditionalGeneration` with test-time registers; the projector never sees them."""

    config_class = LlavaTTRegConfig
    trunk_name = "model.vision_tower"
