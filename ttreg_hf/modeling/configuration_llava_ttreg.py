"""LLaVA's config with test-time registers in its vision tower."""

from typing import ClassVar

from huggingface_hub.dataclasses import strict
from transformers import LlavaConfig

from .ttreg_base import TTRegConfigMixin


@strict
class LlavaTTRegConfig(TTRegConfigMixin, LlavaConfig):
    """`LlavaConfig`, stock towers included, and the fields of `TTRegConfigMixin`."""

    model_type = "llava_ttreg"
    auto_classes: ClassVar[dict[str, str]] = {
        "AutoConfig": "configuration_llava_ttreg.LlavaTTRegConfig",
        "AutoModelForImageTextToText": "modeling_llava_ttreg.LlavaTTRegForConditionalGeneration",
        "AutoModel": "modeling_llava_ttreg.LlavaTTRegModel",
    }

    def validate_output_registers(self) -> None:
        """Checked by `@strict` after construction and before saving."""
        if self.output_registers:
            raise ValueError(
                "`output_registers` is False for this model, because its projector reads the tower's hidden states "
                "and counts their tokens, got True. Patch the vision tower alone to see the registers."
            )
