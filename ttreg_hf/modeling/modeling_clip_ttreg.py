"""CLIP with test-time registers in its vision tower."""

from transformers import CLIPForImageClassification, CLIPModel, CLIPVisionModel, CLIPVisionModelWithProjection

from .configuration_clip_ttreg import CLIPTTRegConfig, CLIPVisionTTRegConfig
from .ttreg_base import TOWERS, TTRegModelMixin

CLIP_VISION = TOWERS["clip_vision_model"]


class CLIPVisionTTRegModel(TTRegModelMixin, CLIPVisionModel):
    """`CLIPVisionModel` with test-time registers; outputs as the stock class's."""

    config_class = CLIPVisionTTRegConfig
    family = CLIP_VISION


class CLIPVisionTTRegModelWithProjection(TTRegModelMixin, CLIPVisionModelWithProjection):
    """`CLIPVisionModelWithProjection` with test-time registers; the head never sees them."""

    config_class = CLIPVisionTTRegConfig
    family = CLIP_VISION
    trunk_name = "vision_model"


class CLIPTTRegModel(TTRegModelMixin, CLIPModel):
    """`CLIPModel` with test-time registers; embeddings and logits never see them."""

    config_class = CLIPTTRegConfig
    family = CLIP_VISION
    trunk_name = "vision_model"


class CLIPTTRegForImageClassification(TTRegModelMixin, CLIPForImageClassification):
    """`CLIPForImageClassification` with test-time registers; the head never sees them."""

    config_class = CLIPTTRegConfig
    family = CLIP_VISION
    trunk_name = "vision_model"
