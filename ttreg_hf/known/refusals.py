"""Kinds of models that cannot be given test-time registers, and why, by transformers' model type.

A type that is neither here nor in `FAMILIES` is just not known yet. The type may be a model's own or its tower's.
"""

_REASONS = {
    "it attends within windows or has relative positions of a fixed number of tokens, so that none can be added": (
        *("beit", "data2vec-vision", "sam", "sam_vision_model", "sam_hq", "sam_hq_vision_model", "sam2"),
        *("sam2_vision_model", "sam2_hiera_det_model", "sam3_vit_model", "vitdet", "seggpt", "rf_detr_dinov2"),
        *("lw_detr_vit", "qwen2_5_vl_vision", "got_ocr2_vision", "swin", "swinv2", "donut-swin"),
    ),
    "it merges or pools its tokens between blocks, so that no token is global": (
        *("groupvit_vision_model", "florence_vision", "hiera"),
    ),
    "it has tokens behind the patches, or takes queries in halfway": (
        *("yolos", "eomt", "eomt_dinov3", "videomt", "llama4_vision_model"),
    ),
    "it reads text and image in one sequence": ("vilt",),
    "it packs images into one sequence, which is not supported yet": (
        *("pixtral", "qwen2_vl_vision", "qwen3_vl_vision", "qwen3_vl_moe_vision", "glm4v_vision"),
        *("glm4v_moe_vision", "gemma4_vision"),
    ),
    "it reads videos": ("videomae", "vjepa2"),
    "its rotary position embedding counts all tokens, so one more would turn every patch": (
        *("mlcd", "mlcd_vision_model"),
    ),
    "it is convolutional: it has no tokens": ("convnext", "convnextv2", "dinov3_convnext", "resnet"),
    "it drops patches at random, so load the checkpoint as a ViT": ("vit_mae",),
    "timm's modules are not transformers', so load a transformers version of the checkpoint": ("timm_wrapper",),
    "the names of its text tower's weights hang on its model type, so patch its `AltCLIPVisionModel`": ("altclip",),
}
REFUSED = {model_type: reason for reason, model_types in _REASONS.items() for model_type in model_types}


def refusals_table() -> str:
    """The types and reasons as a Markdown table."""
    rows = ["| `model_type` | why |", "|---|---|"]
    for reason, model_types in _REASONS.items():
        rows.append(f"| {', '.join(f'`{model_type}`' for model_type in model_types)} | {reason} |")
    return "\n".join(rows)
