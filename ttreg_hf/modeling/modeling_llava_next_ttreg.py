"""LLaVA-NeXT with test-time registers in its vision tower, of any family in `TOWERS`."""

from transformers import LlavaNextForConditionalGeneration, LlavaNextModel

from .configuration_llava_next_ttreg import LlavaNextTTRegConfig
from .ttreg_base import TTRegModelMixin


class LlavaNextTTRegModel(TTRegModelMixin, LlavaNextModel):
    """`LlavaNextModel` with test-time registers; the projector never sees them."""

    config_class = LlavaNextTTRegConfig
    trunk_name = "vision_tower"


class LlavaNextTTRegForConditionalGeneration(TTRegModelMixin, LlavaNextForConditionalGeneration):
    """`LlavaNextForConditionalGeneration` with test-time registers; the projector never sees them."""

    config_class = LlavaNextTTRegConfig
    trunk_name = "model.vision_tower"
