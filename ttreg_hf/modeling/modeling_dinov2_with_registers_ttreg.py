"""DINOv2 with trained registers, with test-time registers."""

from transformers import (
    Dinov2WithRegistersBackbone,
    Dinov2WithRegistersForImageClassification,
    Dinov2WithRegistersModel,
)

from .configuration_dinov2_with_registers_ttreg import Dinov2WithRegistersTTRegConfig
from .ttreg_base import TOWERS, TTRegModelMixin

DINOV2_WITH_REGISTERS = TOWERS["dinov2_with_registers"]


class Dinov2WithRegistersTTRegModel(TTRegModelMixin, Dinov2WithRegistersModel):
    """`Dinov2WithRegistersModel` with test-time registers; outputs as the stock class's."""

    config_class = Dinov2WithRegistersTTRegConfig
    family = DINOV2_WITH_REGISTERS


class Dinov2WithRegistersTTRegForImageClassification(TTRegModelMixin, Dinov2WithRegistersForImageClassification):
    """`Dinov2WithRegistersForImageClassification` with test-time registers; the head never sees them."""

    config_class = Dinov2WithRegistersTTRegConfig
    family = DINOV2_WITH_REGISTERS
    trunk_name = "dinov2_with_registers"


class Dinov2WithRegistersTTRegBackbone(TTRegModelMixin, Dinov2WithRegistersBackbone):
    """`Dinov2WithRegistersBackbone` with test-time registers; feature maps as the stock class's."""

    config_class = Dinov2WithRegistersTTRegConfig
    family = DINOV2_WITH_REGISTERS
    is_backbone = True
