"""Test-time registers for pretrained Vision Transformers, as a plugin for the Hugging Face Hub.

`inspect_norms` tells whether a checkpoint has outlier tokens, `calibrate` finds the neurons that make them,
`add_test_time_registers` moves those neurons' activation to an extra token. Importing this package registers the
patched classes, so that `AutoModel.from_pretrained` loads patched checkpoints without `trust_remote_code`.
"""

import importlib
from typing import TYPE_CHECKING, Any

from ttreg_hf.applying import add_test_time_registers, published_register_neurons
from ttreg_hf.calibration.config import CalibrationConfig, GateConfig
from ttreg_hf.modeling import register_with_auto_classes
from ttreg_hf.pushing import register_push_to_hub
from ttreg_hf.register_neuron import RegisterNeuron

if TYPE_CHECKING:
    from ttreg_hf.calibration.driver import calibrate, inspect_norms
    from ttreg_hf.calibration.norms import NormReport
    from ttreg_hf.calibration.result import CalibrationResult
    from ttreg_hf.evaluation.driver import EvaluationConfig, evaluate
    from ttreg_hf.evaluation.result import Evaluation
    from ttreg_hf.from_hub import from_pretrained
    from ttreg_hf.modeling.configuration_aimv2_ttreg import Aimv2TTRegConfig, Aimv2VisionTTRegConfig
    from ttreg_hf.modeling.configuration_altclip_ttreg import AltCLIPVisionTTRegConfig
    from ttreg_hf.modeling.configuration_clip_ttreg import CLIPTTRegConfig, CLIPVisionTTRegConfig
    from ttreg_hf.modeling.configuration_deit_ttreg import DeiTTTRegConfig
    from ttreg_hf.modeling.configuration_dinov2_ttreg import Dinov2TTRegConfig
    from ttreg_hf.modeling.configuration_dinov2_with_registers_ttreg import Dinov2WithRegistersTTRegConfig
    from ttreg_hf.modeling.configuration_dinov3_vit_ttreg import DINOv3ViTTTRegConfig
    from ttreg_hf.modeling.configuration_ijepa_ttreg import IJepaTTRegConfig
    from ttreg_hf.modeling.configuration_internvl_vision_ttreg import InternVLVisionTTRegConfig
    from ttreg_hf.modeling.configuration_metaclip_2_ttreg import MetaClip2TTRegConfig, MetaClip2VisionTTRegConfig
    from ttreg_hf.modeling.configuration_siglip2_ttreg import Siglip2TTRegConfig, Siglip2VisionTTRegConfig
    from ttreg_hf.modeling.configuration_siglip_ttreg import SiglipTTRegConfig, SiglipVisionTTRegConfig
    from ttreg_hf.modeling.configuration_vit_msn_ttreg import ViTMSNTTRegConfig
    from ttreg_hf.modeling.configuration_vit_ttreg import ViTTTRegConfig
    from ttreg_hf.modeling.modeling_aimv2_ttreg import Aimv2TTRegModel, Aimv2VisionTTRegModel
    from ttreg_hf.modeling.modeling_altclip_ttreg import AltCLIPVisionTTRegModel
    from ttreg_hf.modeling.modeling_clip_ttreg import (
        CLIPTTRegForImageClassification,
        CLIPTTRegModel,
        CLIPVisionTTRegModel,
        CLIPVisionTTRegModelWithProjection,
    )
    from ttreg_hf.modeling.modeling_deit_ttreg import (
        DeiTTTRegForImageClassification,
        DeiTTTRegForImageClassificationWithTeacher,
        DeiTTTRegModel,
    )
    from ttreg_hf.modeling.modeling_dinov2_ttreg import (
        Dinov2TTRegBackbone,
        Dinov2TTRegForImageClassification,
        Dinov2TTRegModel,
    )
    from ttreg_hf.modeling.modeling_dinov2_with_registers_ttreg import (
        Dinov2WithRegistersTTRegBackbone,
        Dinov2WithRegistersTTRegForImageClassification,
        Dinov2WithRegistersTTRegModel,
    )
    from ttreg_hf.modeling.modeling_dinov3_vit_ttreg import DINOv3ViTTTRegBackbone, DINOv3ViTTTRegModel
    from ttreg_hf.modeling.modeling_ijepa_ttreg import IJepaTTRegForImageClassification, IJepaTTRegModel
    from ttreg_hf.modeling.modeling_internvl_vision_ttreg import InternVLVisionTTRegModel
    from ttreg_hf.modeling.modeling_metaclip_2_ttreg import (
        MetaClip2TTRegForImageClassification,
        MetaClip2TTRegModel,
        MetaClip2VisionTTRegModel,
        MetaClip2VisionTTRegModelWithProjection,
    )
    from ttreg_hf.modeling.modeling_siglip2_ttreg import (
        Siglip2TTRegForImageClassification,
        Siglip2TTRegModel,
        Siglip2VisionTTRegModel,
    )
    from ttreg_hf.modeling.modeling_siglip_ttreg import (
        SiglipTTRegForImageClassification,
        SiglipTTRegModel,
        SiglipVisionTTRegModel,
    )
    from ttreg_hf.modeling.modeling_vit_msn_ttreg import ViTMSNTTRegForImageClassification, ViTMSNTTRegModel
    from ttreg_hf.modeling.modeling_vit_ttreg import ViTTTRegForImageClassification, ViTTTRegModel

# imported when first asked for, so that who loads a patched model does not wait for other families, nor for what makes
# and publishes one; the classes of the families come from `ttreg_hf.modeling`
_LATER = {
    "CalibrationResult": "ttreg_hf.calibration.result",
    "Evaluation": "ttreg_hf.evaluation.result",
    "EvaluationConfig": "ttreg_hf.evaluation.driver",
    "NormReport": "ttreg_hf.calibration.norms",
    "calibrate": "ttreg_hf.calibration.driver",
    "evaluate": "ttreg_hf.evaluation.driver",
    "from_pretrained": "ttreg_hf.from_hub",
    "inspect_norms": "ttreg_hf.calibration.driver",
}

__version__ = "0.1.0"
__all__ = [
    "Aimv2TTRegConfig",
    "Aimv2TTRegModel",
    "Aimv2VisionTTRegConfig",
    "Aimv2VisionTTRegModel",
    "AltCLIPVisionTTRegConfig",
    "AltCLIPVisionTTRegModel",
    "CLIPTTRegConfig",
    "CLIPTTRegForImageClassification",
    "CLIPTTRegModel",
    "CLIPVisionTTRegConfig",
    "CLIPVisionTTRegModel",
    "CLIPVisionTTRegModelWithProjection",
    "CalibrationConfig",
    "CalibrationResult",
    "DINOv3ViTTTRegBackbone",
    "DINOv3ViTTTRegConfig",
    "DINOv3ViTTTRegModel",
    "DeiTTTRegConfig",
    "DeiTTTRegForImageClassification",
    "DeiTTTRegForImageClassificationWithTeacher",
    "DeiTTTRegModel",
    "Dinov2TTRegBackbone",
    "Dinov2TTRegConfig",
    "Dinov2TTRegForImageClassification",
    "Dinov2TTRegModel",
    "Dinov2WithRegistersTTRegBackbone",
    "Dinov2WithRegistersTTRegConfig",
    "Dinov2WithRegistersTTRegForImageClassification",
    "Dinov2WithRegistersTTRegModel",
    "Evaluation",
    "EvaluationConfig",
    "GateConfig",
    "IJepaTTRegConfig",
    "IJepaTTRegForImageClassification",
    "IJepaTTRegModel",
    "InternVLVisionTTRegConfig",
    "InternVLVisionTTRegModel",
    "MetaClip2TTRegConfig",
    "MetaClip2TTRegForImageClassification",
    "MetaClip2TTRegModel",
    "MetaClip2VisionTTRegConfig",
    "MetaClip2VisionTTRegModel",
    "MetaClip2VisionTTRegModelWithProjection",
    "NormReport",
    "RegisterNeuron",
    "Siglip2TTRegConfig",
    "Siglip2TTRegForImageClassification",
    "Siglip2TTRegModel",
    "Siglip2VisionTTRegConfig",
    "Siglip2VisionTTRegModel",
    "SiglipTTRegConfig",
    "SiglipTTRegForImageClassification",
    "SiglipTTRegModel",
    "SiglipVisionTTRegConfig",
    "SiglipVisionTTRegModel",
    "ViTMSNTTRegConfig",
    "ViTMSNTTRegForImageClassification",
    "ViTMSNTTRegModel",
    "ViTTTRegConfig",
    "ViTTTRegForImageClassification",
    "ViTTTRegModel",
    "add_test_time_registers",
    "calibrate",
    "evaluate",
    "from_pretrained",
    "inspect_norms",
    "published_register_neurons",
]

register_with_auto_classes()
register_push_to_hub()


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LATER.get(name, "ttreg_hf.modeling")), name)
