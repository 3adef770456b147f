"""SigLIP with test-time registers in its vision tower."""

from transformers import SiglipForImageClassification, SiglipModel, SiglipVisionModel

from .configuration_siglip_ttreg import SiglipTTRegConfig, SiglipVisionTTRegConfig
from .ttreg_base import Family, TTRegModelMixin, inherit_checkpoint_conversion

SIGLIP_VISION = Family(embeddings="embeddings", blocks="encoder.layers", pooling_head="head", num_prefix_tokens=0)


class SiglipVisionTTRegModel(TTRegModelMixin, SiglipVisionModel):
    """`SiglipVisionModel` with test-time registers; outputs as the stock class's."""

    config: SiglipVisionTTRegConfig
    config_class = SiglipVisionTTRegConfig
    family = SIGLIP_VISION


class SiglipTTRegModel(TTRegModelMixin, SiglipModel):
    """`SiglipModel` with test-time registers; embeddings and logits never see them."""

    config: SiglipTTRegConfig
    config_class = SiglipTTRegConfig
    family = SIGLIP_VISION
    trunk_name = "vision_model"


class SiglipTTRegForImageClassification(TTRegModelMixin, SiglipForImageClassification):
    """`SiglipForImageClassification` with test-time registers; the head never sees them."""

    config: SiglipTTRegConfig
    config_class = SiglipTTRegConfig
    family = SIGLIP_VISION
    trunk_name = "vision_model"


inherit_checkpoint_conversion(SiglipVisionTTRegModel, SiglipTTRegModel, SiglipTTRegForImageClassification)
SiglipVisionTTRegModel.register_for_auto_class("AutoModel")
SiglipTTRegModel.register_for_auto_class("AutoModel")
SiglipTTRegForImageClassification.register_for_auto_class("AutoModelForImageClassification")
