"""DeiT with test-time registers."""

from transformers import DeiTForImageClassification, DeiTForImageClassificationWithTeacher, DeiTModel

from .configuration_deit_ttreg import DeiTTTRegConfig
from .ttreg_base import Family, TTRegModelMixin

DEIT = Family(embeddings="embeddings", blocks="layers", num_prefix_tokens=2)


class DeiTTTRegModel(TTRegModelMixin, DeiTModel):
    """`DeiTModel` with test-time registers; outputs as the stock class's."""

    config_class = DeiTTTRegConfig
    family = DEIT


class DeiTTTRegForImageClassification(TTRegModelMixin, DeiTForImageClassification):
    """`DeiTForImageClassification` with test-time registers; the head never sees them."""

    config_class = DeiTTTRegConfig
    family = DEIT
    trunk_name = "deit"


class DeiTTTRegForImageClassificationWithTeacher(TTRegModelMixin, DeiTForImageClassificationWithTeacher):
    """`DeiTForImageClassificationWithTeacher` with test-time registers; its heads never see them."""

    config_class = DeiTTTRegConfig
    family = DEIT
    trunk_name = "deit"
