"""AltCLIP's vision tower with test-time registers."""

from transformers import AltCLIPVisionModel

from .configuration_altclip_ttreg import AltCLIPVisionTTRegConfig
from .ttreg_base import Family, TTRegModelMixin

ALTCLIP_VISION = Family(embeddings="embeddings", blocks="encoder.layers")


class AltCLIPVisionTTRegModel(TTRegModelMixin, AltCLIPVisionModel):
    """`AltCLIPVisionModel` with test-time registers; outputs as the stock class's."""

    config_class = AltCLIPVisionTTRegConfig
    family = ALTCLIP_VISION
