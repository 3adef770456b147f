"""InternVL's vision tower (InternViT) with test-time registers.

Norms are LayerNorm or RMSNorm by the config; a layer scale multiplies what the MLP adds. The model has
no pooled output, and its blocks take no mask. Choosing features and shuffling pixels is the outer model's work.
"""

from transformers import InternVLVisionModel

from .configuration_internvl_vision_ttreg import InternVLVisionTTRegConfig
from .ttreg_base import Family, TTRegModelMixin

INTERNVL_VISION = Family(embeddings="embeddings", blocks="encoder.layer")


class InternVLVisionTTRegModel(TTRegModelMixin, InternVLVisionModel):
    """`InternVLVisionModel` with test-time registers; outputs as the stock class's."""

    config_class = InternVLVisionTTRegConfig
    family = INTERNVL_VISION
