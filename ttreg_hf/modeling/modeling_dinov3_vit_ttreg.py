"""DINOv3 with test-time registers."""

from transformers import DINOv3ViTBackbone, DINOv3ViTModel

from .configuration_dinov3_vit_ttreg import DINOv3ViTTTRegConfig
from .ttreg_base import TOWERS, TTRegModelMixin

DINOV3 = TOWERS["dinov3_vit"]


class DINOv3ViTTTRegModel(TTRegModelMixin, DINOv3ViTModel):
    """`DINOv3ViTModel` with test-time registers; outputs as the stock class's."""

    config_class = DINOv3ViTTTRegConfig
    family = DINOV3


class DINOv3ViTTTRegBackbone(TTRegModelMixin, DINOv3ViTBackbone):
    """`DINOv3ViTBackbone` with test-time registers; feature maps as the stock class's."""

    config_class = DINOv3ViTTTRegConfig
    family = DINOV3
    is_backbone = True
