"""DINOv2 with test-time registers."""

from transformers import Dinov2Backbone, Dinov2ForImageClassification, Dinov2Model

from .configuration_dinov2_ttreg import Dinov2TTRegConfig
from .ttreg_base import Family, TTRegModelMixin, inherit_checkpoint_conversion

DINOV2 = Family(embeddings="embeddings", blocks="encoder.layer", captures="encoder", detection_layer=-2)


class Dinov2TTRegModel(TTRegModelMixin, Dinov2Model):
    """`Dinov2Model` with test-time registers; outputs as the stock class's."""

    config: Dinov2TTRegConfig
    config_class = Dinov2TTRegConfig
    family = DINOV2


class Dinov2TTRegForImageClassification(TTRegModelMixin, Dinov2ForImageClassification):
    """`Dinov2ForImageClassification` with test-time registers; the head never sees them."""

    config: Dinov2TTRegConfig
    config_class = Dinov2TTRegConfig
    family = DINOV2
    trunk_name = "dinov2"


class Dinov2TTRegBackbone(TTRegModelMixin, Dinov2Backbone):
    """`Dinov2Backbone` with test-time registers; feature maps as the stock class's."""

    config: Dinov2TTRegConfig
    config_class = Dinov2TTRegConfig
    family = DINOV2
    is_backbone = True


inherit_checkpoint_conversion(Dinov2TTRegModel, Dinov2TTRegForImageClassification, Dinov2TTRegBackbone)
Dinov2TTRegModel.register_for_auto_class("AutoModel")
Dinov2TTRegForImageClassification.register_for_auto_class("AutoModelForImageClassification")
Dinov2TTRegBackbone.register_for_auto_class("AutoBackbone")
