"""AIMv2 with test-time registers in its vision tower.

No CLS token: all tokens are patches. Every MLP is gated, every norm an RMSNorm. The pooling head, where the
config has one, gets the patches only.
"""

from transformers import Aimv2Model, Aimv2VisionModel

from .configuration_aimv2_ttreg import Aimv2TTRegConfig, Aimv2VisionTTRegConfig
from .ttreg_base import Family, TTRegModelMixin

AIMV2_VISION = Family(embeddings="embeddings", blocks="encoder.layers", pooling_head="head", num_prefix_tokens=0)


class Aimv2VisionTTRegModel(TTRegModelMixin, Aimv2VisionModel):
    """`Aimv2VisionModel` with test-time registers; outputs as the stock class's."""

    config_class = Aimv2VisionTTRegConfig
    family = AIMV2_VISION


class Aimv2TTRegModel(TTRegModelMixin, Aimv2Model):
    """`Aimv2Model` with test-time registers; embeddings and logits never see them."""

    config_class = Aimv2TTRegConfig
    family = AIMV2_VISION
    trunk_name = "vision_model"
