"""MetaCLIP 2 with test-time registers in its vision tower."""

from transformers import (
    MetaClip2ForImageClassification,
    MetaClip2Model,
    MetaClip2VisionModel,
    MetaClip2VisionModelWithProjection,
)

from .configuration_metaclip_2_ttreg import MetaClip2TTRegConfig, MetaClip2VisionTTRegConfig
from .ttreg_base import Family, TTRegModelMixin

METACLIP_2_VISION = Family(embeddings="embeddings", blocks="encoder.layers")


class MetaClip2VisionTTRegModel(TTRegModelMixin, MetaClip2VisionModel):
    """`MetaClip2VisionModel` with test-time registers; outputs as the stock class's."""

    config_class = MetaClip2VisionTTRegConfig
    family = METACLIP_2_VISION


class MetaClip2VisionTTRegModelWithProjection(TTRegModelMixin, MetaClip2VisionModelWithProjection):
    """`MetaClip2VisionModelWithProjection` with test-time registers; the head never sees them."""

    config_class = MetaClip2VisionTTRegConfig
    family = METACLIP_2_VISION
    trunk_name = "vision_model"


class MetaClip2TTRegModel(TTRegModelMixin, MetaClip2Model):
    """`MetaClip2Model` with test-time registers; embeddings and logits never see them."""

    config_class = MetaClip2TTRegConfig
    family = METACLIP_2_VISION
    trunk_name = "vision_model"


class MetaClip2TTRegForImageClassification(TTRegModelMixin, MetaClip2ForImageClassification):
    """`MetaClip2ForImageClassification` with test-time registers; the head never sees them."""

    config_class = MetaClip2TTRegConfig
    family = METACLIP_2_VISION
    trunk_name = "vision_model"
