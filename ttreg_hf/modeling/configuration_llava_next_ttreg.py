"""LLaVA-NeXT's config with test-time registers in its vision tower."""

from typing import ClassVar

from huggingface_hub.dataclasses import strict
from transformers import LlavaNextConfig

from .ttreg_base import TTRegConfigMixin


@strict
class LlavaNextTTRegConfig(TTRegConfigMixin, LlavaNextConfig):
    """`LlavaNextConfig`, stock towers included, and the fields of `TTRegConfigMixin`."""

    model_type = "llava_next_ttreg"
    auto_classes: ClassVar[dict[str, str]] = {
        "AutoConfig": "configuration_llava_next_ttreg.LlavaNextTTRegConfig",
        "AutoModelForImageTextToText": "modeling_llava_next_ttreg.LlavaNextTTRegForConditionalGeneration",
        "AutoModel": "modeling_llava_next_ttreg.LlavaNextTTRegModel",
    }

    def validate_output_registers(self) -> None:
        """Checked by `@strict` after construction and before saving."""
        if self.output_registers:
            raise ValueError(
                "`output_registers` is False for this model, because its projector reads the tower's hidden states "
                "and counts their tokens, got True. Patch the vision tower alone to see the registers."
            )
