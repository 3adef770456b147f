"""DINOv2 with test-time registers."""

from transformers import Dinov2Backbone, Dinov2ForImageClassification, Dinov2Model

from .configuration_dinov2_ttreg import Dinov2TTRegConfig
from .ttreg_base import TOWERS, TTRegModelMixin

DINOV2 = TOWERS["dinov2"]


class Dinov2TTRegModel(TTRegModelMixin, Dinov2Model):
    """`Dinov2Model` with test-time registers; outputs as the stock class's."""

    config_class = Dinov2TTRegConfig
    family = DINOV2


class Dinov2TTRegForImageClassification(TTRegModelMixin, Dinov2ForImageClassification):
    """`Dinov2ForImageClassification` with test-time registers; the head never sees them."""

    config_class = Dinov2TTRegConfig
    family = DINOV2
    trunk_name = "dinov2"


class Dinov2TTRegBackbone(TTRegModelMixin, Dinov2Backbone):
    """`Dinov2Backbone` with test-time registers; feature maps as the stock class's."""

    config_class = Dinov2TTRegConfig
    family = DINOV2
    is_backbone = True
