"""DeiT with test-time registers."""

from transformers import DeiTForImageClassification, DeiTForImageClassificationWithTeacher, DeiTModel

from .configuration_deit_ttreg import DeiTTTRegConfig
from .ttreg_base import Family, TTRegModelMixin, inherit_checkpoint_conversion

DEIT = Family(embeddings="embeddings", blocks="layers", num_prefix_tokens=2)


class DeiTTTRegModel(TTRegModelMixin, DeiTModel):
    """`DeiTModel` with test-time registers; outputs as the stock class's."""

    config: DeiTTTRegConfig
    config_class = DeiTTTRegConfig
    family = DEIT


class DeiTTTRegForImageClassification(TTRegModelMixin, DeiTForImageClassification):
    """`DeiTForImageClassification` with test-time registers; the head never sees them."""

    config: DeiTTTRegConfig
    config_class = DeiTTTRegConfig
    family = DEIT
    trunk_name = "deit"


class DeiTTTRegForImageClassificationWithTeacher(TTRegModelMixin, DeiTForImageClassificationWithTeacher):
    """`DeiTForImageClassificationWithTeacher` with test-time registers; its heads never see them."""

    config: DeiTTTRegConfig
    config_class = DeiTTTRegConfig
    family = DEIT
    trunk_name = "deit"


inherit_checkpoint_conversion(
    DeiTTTRegModel, DeiTTTRegForImageClassification, DeiTTTRegForImageClassificationWithTeacher
)
DeiTTTRegModel.register_for_auto_class("AutoModel")
DeiTTTRegForImageClassification.register_for_auto_class("AutoModelForImageClassification")
# no Auto class loads it: its entry in `auto_map` is for `get_class_from_dynamic_module`
DeiTTTRegForImageClassificationWithTeacher._auto_class = "DeiTForImageClassificationWithTeacher"
