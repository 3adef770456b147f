"""ViT MSN with test-time registers."""

from transformers import ViTMSNForImageClassification, ViTMSNModel

from .configuration_vit_msn_ttreg import ViTMSNTTRegConfig
from .ttreg_base import Family, TTRegModelMixin

VIT_MSN = Family(embeddings="embeddings", blocks="layers")


class ViTMSNTTRegModel(TTRegModelMixin, ViTMSNModel):
    """`ViTMSNModel` with test-time registers; outputs as the stock class's."""

    config_class = ViTMSNTTRegConfig
    family = VIT_MSN


class ViTMSNTTRegForImageClassification(TTRegModelMixin, ViTMSNForImageClassification):
    """`ViTMSNForImageClassification` with test-time registers; the head never sees them."""

    config_class = ViTMSNTTRegConfig
    family = VIT_MSN
    trunk_name = "vit"
