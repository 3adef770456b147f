"""SigLIP with test-time registers in its vision tower."""

from transformers import SiglipForImageClassification, SiglipModel, SiglipVisionModel

from .configuration_siglip_ttreg import SiglipTTRegConfig, SiglipVisionTTRegConfig
from .ttreg_base import TOWERS, TTRegModelMixin

SIGLIP_VISION = TOWERS["siglip_vision_model"]


class SiglipVisionTTRegModel(TTRegModelMixin, SiglipVisionModel):
    """`SiglipVisionModel` with test-time registers; outputs as the stock class's."""

    config_class = SiglipVisionTTRegConfig
    family = SIGLIP_VISION


class SiglipTTRegModel(TTRegModelMixin, SiglipModel):
    """`SiglipModel` with test-time registers; embeddings and logits never see them."""

    config_class = SiglipTTRegConfig
    family = SIGLIP_VISION
    trunk_name = "vision_model"


class SiglipTTRegForImageClassification(TTRegModelMixin, SiglipForImageClassification):
    """`SiglipForImageClassification` with test-time registers; the head never sees them."""

    config_class = SiglipTTRegConfig
    family = SIGLIP_VISION
    trunk_name = "vision_model"
