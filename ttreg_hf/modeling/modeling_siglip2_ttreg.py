"""SigLIP 2 (NaFlex) with test-time registers in its vision tower."""

from transformers import Siglip2ForImageClassification, Siglip2Model, Siglip2VisionModel

from .configuration_siglip2_ttreg import Siglip2TTRegConfig, Siglip2VisionTTRegConfig
from .ttreg_base import Family, TTRegModelMixin

SIGLIP2_VISION = Family(
    embeddings="embeddings",
    blocks="encoder.layers",
    pooling_head="head",
    num_prefix_tokens=0,
    attention_mask="pixel_attention_mask",
)


class Siglip2VisionTTRegModel(TTRegModelMixin, Siglip2VisionModel):
    """`Siglip2VisionModel` with test-time registers; outputs as the stock class's."""

    config_class = Siglip2VisionTTRegConfig
    family = SIGLIP2_VISION


class Siglip2TTRegModel(TTRegModelMixin, Siglip2Model):
    """`Siglip2Model` with test-time registers; embeddings and logits never see them."""

    config_class = Siglip2TTRegConfig
    family = SIGLIP2_VISION
    trunk_name = "vision_model"


class Siglip2TTRegForImageClassification(TTRegModelMixin, Siglip2ForImageClassification):
    """`Siglip2ForImageClassification` with test-time registers; the head never sees them."""

    config_class = Siglip2TTRegConfig
    family = SIGLIP2_VISION
    trunk_name = "vision_model"
