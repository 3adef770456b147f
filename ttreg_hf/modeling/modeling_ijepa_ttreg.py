"""I-JEPA with test-time registers."""

from transformers import IJepaForImageClassification, IJepaModel

from .configuration_ijepa_ttreg import IJepaTTRegConfig
from .ttreg_base import Family, TTRegModelMixin

IJEPA = Family(embeddings="embeddings", blocks="layers", num_prefix_tokens=0)


class IJepaTTRegModel(TTRegModelMixin, IJepaModel):
    """`IJepaModel` with test-time registers; outputs as the stock class's."""

    config_class = IJepaTTRegConfig
    family = IJEPA


class IJepaTTRegForImageClassification(TTRegModelMixin, IJepaForImageClassification):
    """`IJepaForImageClassification` with test-time registers; the head never sees them."""

    config_class = IJepaTTRegConfig
    family = IJEPA
    trunk_name = "ijepa"
