"""The suitcase: model code that is installed here and copied to the Hub as it is.

Files in this folder import torch, transformers, huggingface_hub, the standard library and each other
(`from .name import x`), nothing else. This `__init__` does not travel.
"""

from typing import Any

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoModel,
    AutoModelForDepthEstimation,
    AutoModelForImageClassification,
    AutoModelForImageTextToText,
    AutoModelForZeroShotImageClassification,
    CLIPVisionModelWithProjection,
    DeiTForImageClassificationWithTeacher,
    PretrainedConfig,
)

from .configuration_clip_ttreg import CLIPTTRegConfig, CLIPVisionTTRegConfig
from .configuration_deit_ttreg import DeiTTTRegConfig
from .configuration_depth_anything_ttreg import DepthAnythingTTRegConfig
from .configuration_dinov2_ttreg import Dinov2TTRegConfig
from .configuration_dinov2_with_registers_ttreg import Dinov2WithRegistersTTRegConfig
from .configuration_dinov3_vit_ttreg import DINOv3ViTTTRegConfig
from .configuration_dpt_ttreg import DPTTTRegConfig
from .configuration_llava_next_ttreg import LlavaNextTTRegConfig
from .configuration_llava_ttreg import LlavaTTRegConfig
from .configuration_siglip2_ttreg import Siglip2TTRegConfig, Siglip2VisionTTRegConfig
from .configuration_siglip_ttreg import SiglipTTRegConfig, SiglipVisionTTRegConfig
from .configuration_vit_ttreg import ViTTTRegConfig
from .modeling_clip_ttreg import (
    CLIPTTRegForImageClassification,
    CLIPTTRegModel,
    CLIPVisionTTRegModel,
    CLIPVisionTTRegModelWithProjection,
)
from .modeling_deit_ttreg import (
    DeiTTTRegForImageClassification,
    DeiTTTRegForImageClassificationWithTeacher,
    DeiTTTRegModel,
)
from .modeling_depth_anything_ttreg import DepthAnythingTTRegForDepthEstimation
from .modeling_dinov2_ttreg import Dinov2TTRegBackbone, Dinov2TTRegForImageClassification, Dinov2TTRegModel
from .modeling_dinov2_with_registers_ttreg import (
    Dinov2WithRegistersTTRegBackbone,
    Dinov2WithRegistersTTRegForImageClassification,
    Dinov2WithRegistersTTRegModel,
)
from .modeling_dinov3_vit_ttreg import DINOv3ViTTTRegBackbone, DINOv3ViTTTRegModel
from .modeling_dpt_ttreg import DPTTTRegForDepthEstimation
from .modeling_llava_next_ttreg import LlavaNextTTRegForConditionalGeneration, LlavaNextTTRegModel
from .modeling_llava_ttreg import LlavaTTRegForConditionalGeneration, LlavaTTRegModel
from .modeling_siglip2_ttreg import Siglip2TTRegForImageClassification, Siglip2TTRegModel, Siglip2VisionTTRegModel
from .modeling_siglip_ttreg import SiglipTTRegForImageClassification, SiglipTTRegModel, SiglipVisionTTRegModel
from .modeling_vit_ttreg import ViTTTRegForImageClassification, ViTTTRegModel
from .ttreg_base import TTRegModelMixin

# of each config the patched classes, by the Auto class that loads them, or by the stock class where none does;
# the first one loads a checkpoint where none is asked for
TTREG_CLASSES: dict[type[PretrainedConfig], dict[Any, type[TTRegModelMixin]]] = {
    CLIPVisionTTRegConfig: {
        AutoModel: CLIPVisionTTRegModel,
        CLIPVisionModelWithProjection: CLIPVisionTTRegModelWithProjection,
    },
    CLIPTTRegConfig: {
        AutoModel: CLIPTTRegModel,
        AutoModelForImageClassification: CLIPTTRegForImageClassification,
        AutoModelForZeroShotImageClassification: CLIPTTRegModel,
    },
    DeiTTTRegConfig: {
        AutoModel: DeiTTTRegModel,
        AutoModelForImageClassification: DeiTTTRegForImageClassification,
        DeiTForImageClassificationWithTeacher: DeiTTTRegForImageClassificationWithTeacher,
    },
    DepthAnythingTTRegConfig: {
        AutoModelForDepthEstimation: DepthAnythingTTRegForDepthEstimation,
    },
    Dinov2TTRegConfig: {
        AutoModel: Dinov2TTRegModel,
        AutoModelForImageClassification: Dinov2TTRegForImageClassification,
        AutoBackbone: Dinov2TTRegBackbone,
    },
    Dinov2WithRegistersTTRegConfig: {
        AutoModel: Dinov2WithRegistersTTRegModel,
        AutoModelForImageClassification: Dinov2WithRegistersTTRegForImageClassification,
        AutoBackbone: Dinov2WithRegistersTTRegBackbone,
    },
    DINOv3ViTTTRegConfig: {
        AutoModel: DINOv3ViTTTRegModel,
        AutoBackbone: DINOv3ViTTTRegBackbone,
    },
    DPTTTRegConfig: {
        AutoModelForDepthEstimation: DPTTTRegForDepthEstimation,
    },
    LlavaTTRegConfig: {
        AutoModelForImageTextToText: LlavaTTRegForConditionalGeneration,
        AutoModel: LlavaTTRegModel,
    },
    LlavaNextTTRegConfig: {
        AutoModelForImageTextToText: LlavaNextTTRegForConditionalGeneration,
        AutoModel: LlavaNextTTRegModel,
    },
    Siglip2VisionTTRegConfig: {
        AutoModel: Siglip2VisionTTRegModel,
    },
    Siglip2TTRegConfig: {
        AutoModel: Siglip2TTRegModel,
        AutoModelForImageClassification: Siglip2TTRegForImageClassification,
        AutoModelForZeroShotImageClassification: Siglip2TTRegModel,
    },
    SiglipVisionTTRegConfig: {
        AutoModel: SiglipVisionTTRegModel,
    },
    SiglipTTRegConfig: {
        AutoModel: SiglipTTRegModel,
        AutoModelForImageClassification: SiglipTTRegForImageClassification,
        AutoModelForZeroShotImageClassification: SiglipTTRegModel,
    },
    ViTTTRegConfig: {
        AutoModel: ViTTTRegModel,
        AutoModelForImageClassification: ViTTTRegForImageClassification,
    },
}


def register_with_auto_classes() -> None:
    """Let `AutoModel.from_pretrained` find the patched classes in this process, without `trust_remote_code`."""
    for config_class, model_classes in TTREG_CLASSES.items():
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
        for auto_class, model_class in model_classes.items():
            if auto_class.__name__.startswith("Auto"):
                auto_class.register(config_class, model_class, exist_ok=True)
