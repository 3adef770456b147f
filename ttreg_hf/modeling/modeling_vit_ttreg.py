"""ViT with test-time registers."""

from transformers import ViTForImageClassification, ViTModel

from .configuration_vit_ttreg import ViTTTRegConfig
from .ttreg_base import TOWERS, TTRegModelMixin

VIT = TOWERS["vit"]


class ViTTTRegModel(TTRegModelMixin, ViTModel):
    """`ViTModel` with test-time registers; outputs as the stock class's."""

    config_class = ViTTTRegConfig
    family = VIT


class ViTTTRegForImageClassification(TTRegModelMixin, ViTForImageClassification):
    """`ViTForImageClassification` with test-time registers; the head never sees them."""

    config_class = ViTTTRegConfig
    family = VIT
    trunk_name = "vit"
