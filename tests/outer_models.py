"""Models around a vision tower, each tiny and random: what makes it, where its tower is, and what it reads."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from families import TINY_TEXT, images
from torch import Tensor, nn

from ttreg_hf import add_test_time_registers

IMAGE_TOKEN = 39
TOWER = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
    "intermediate_size": 40,
}
TEXT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 16,
    "vocab_size": 40,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA = {"model_type": "llama", **TEXT}
CLIP = {"model_type": "clip_vision_model", **TOWER}
SIGLIP = {"model_type": "siglip_vision_model", **TOWER}
GEMMA = {"model_type": "gemma", **TEXT}
OPT = {"model_type": "opt", **TEXT, "ffn_dim": 16, "word_embed_proj_dim": 16}
QFORMER = {**TEXT, "cross_attention_frequency": 1}
PALIGEMMA = {
    "vision_config": {**SIGLIP, "vision_use_head": False},
    "text_config": GEMMA,
    "projection_dim": 16,
    "image_token_index": IMAGE_TOKEN,
}
NECK = {
    "neck_hidden_sizes": [8, 8, 8],
    "fusion_hidden_size": 8,
    "reassemble_factors": [2, 1, 0.5],
}
BACKBONE = {"model_type": "dinov2", **TOWER, "out_features": ["stage1", "stage2", "stage3"]}
FOUR_STAGES = {**BACKBONE, "out_features": ["stem", "stage1", "stage2", "stage3"]}
GEMMA3 = {
    "vision_config": SIGLIP,
    "text_config": TEXT,
    "mm_tokens_per_image": 4,
    "image_token_index": IMAGE_TOKEN,
    "boi_token_index": 37,
    "eoi_token_index": 38,
}
DEPTH_PRO = {
    **{f"{part}_model_config": {"model_type": "dinov2", **TOWER} for part in ("image", "patch", "fov")},
    "patch_size": 16,
    "fusion_hidden_size": 8,
    "intermediate_hook_ids": [1, 0],
    "intermediate_feature_dims": [8, 8],
    "scaled_images_ratios": [0.5, 1.0],
    "scaled_images_overlap_ratios": [0.0, 0.2],
    "scaled_images_feature_dims": [8, 8],
    "use_fov_model": True,
}
DEPTH_PRO_TOWERS = (
    "depth_pro.encoder.patch_encoder.model",
    "depth_pro.encoder.image_encoder.model",
    "fov_model.fov_encoder.model",
)
TOKENS = {**BACKBONE, "reshape_hidden_states": False}  # feature maps as sequences of tokens
TILES = {"image_token_index": IMAGE_TOKEN, "image_grid_pinpoints": [[16, 32], [32, 16], [32, 32]]}


def _pixels(count: int) -> dict[str, Tensor]:
    return {"pixel_values": images(count)}


def _ids(count: int, image_tokens: int = 0) -> Tensor:
    return torch.tensor([[1, *[IMAGE_TOKEN] * image_tokens, 3, 2]] * count)


def _with_prompt(image_tokens: int, pixels: Callable[[int], dict[str, Tensor]] = _pixels, **more: Any) -> Any:
    """Images, and a prompt that holds as many image tokens for each."""
    return lambda count: {"input_ids": _ids(count, image_tokens), **pixels(count), **more}


def _one_of_several(count: int) -> dict[str, Tensor]:
    """Each prompt's list of images: one."""
    return {"pixel_values": images(count)[:, None]}


def _tiles(count: int) -> dict[str, Tensor]:
    """The whole image, and two tiles of it."""
    pixels = torch.stack([images(3, seed=seed) for seed in range(count)])
    return {"pixel_values": pixels, "image_sizes": torch.tensor([[32, 16]] * count)}


def _flat_patches(count: int) -> dict[str, Tensor]:
    patches = images(count).unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 4, 5, 1)
    return {
        "pixel_values": patches.flatten(3).flatten(1, 2),
        "pixel_attention_mask": torch.ones(count, 16, dtype=torch.long),
        "spatial_shapes": torch.tensor([[4, 4]] * count),
    }


def _prompts_for_qformer(count: int) -> dict[str, Tensor]:
    return {**_pixels(count), "qformer_input_ids": _ids(count)}


def _start_of_answer(count: int) -> dict[str, Tensor]:
    return {**_pixels(count), "decoder_input_ids": _ids(count)}


def _text(count: int) -> dict[str, Tensor]:
    return {**_pixels(count), "input_ids": torch.tensor([[0, 5, 19]] * count)}


def _text_of_ones(count: int) -> dict[str, Tensor]:
    return {**_pixels(count), "input_ids": torch.tensor([[1, 5, 19]] * count)}


def _masked(count: int) -> dict[str, Tensor]:
    return {**_pixels(count), "attention_mask": torch.ones(count, 6, dtype=torch.long)}


def _among_videos(count: int) -> dict[str, Tensor]:
    return {"pixel_values_images": images(count)}


def _larger(count: int) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))}


PROMPT = _with_prompt(16)


@dataclass(frozen=True)
class OuterModel:
    """A stock model with a vision tower inside.

    Args:
        class_name: of transformers.
        tower: its dotted path.
        inputs: of its forward, for so many images.
        config: fields of its config.
        towers: all that it holds, where there are several.
        texts_meet_images: whether each text is compared with each image.
    """

    class_name: str
    tower: str
    inputs: Callable[[int], dict[str, Any]]
    config: dict[str, Any] = field(default_factory=dict)
    towers: tuple[str, ...] = ()
    texts_meet_images: bool = False

    def patched(self, stock: Any, neurons: Any, **options: Any) -> Any:
        """With test-time registers in the tower, which is named only where it has to be."""
        return add_test_time_registers(stock, neurons, tower=self.tower if self.towers else None, **options)

    def stock(self) -> Any:
        """With weights large enough that every part matters, in eval mode."""
        cls = getattr(transformers, self.class_name)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(4)  # with some others DPT's last ReLU gives zeros only
            model = cls(cls.config_class(**copy.deepcopy(self.config))).eval()
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
            for module in model.modules():  # padding stays zero, as ChineseCLIP makes it when it is loaded
                if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                    module.weight[module.padding_idx] = 0
        return model


def _reader(class_name: str, inputs: Any, tower: str = "model.vision_tower", **config: Any) -> OuterModel:
    return OuterModel(class_name, tower, inputs, {"image_token_id": IMAGE_TOKEN, **config})


def _dual(
    class_name: str,
    tower: str = "vision_model",
    vision: Any = TOWER,
    text: Any = TINY_TEXT,
    inputs: Any = _text,
    **config: Any,
) -> OuterModel:
    return OuterModel(
        class_name,
        tower,
        inputs,
        {"vision_config": vision, "text_config": text, **config},
        texts_meet_images=class_name.endswith("Model"),
    )


def _dense(
    class_name: str, backbone: Any = TOKENS, tower: str = "backbone", inputs: Any = _pixels, **config: Any
) -> OuterModel:
    return OuterModel(class_name, tower, inputs, {"backbone_config": backbone, **config})


def _llava(
    vision: Any = CLIP,
    name: str = "LlavaForConditionalGeneration",
    inputs: Any = PROMPT,
    tower: str = "model.vision_tower",
    towers: Any = (),
    **config: Any,
) -> OuterModel:
    return OuterModel(
        name,
        tower,
        inputs,
        {"vision_config": vision, "text_config": LLAMA, "image_token_index": IMAGE_TOKEN, **config},
        towers,
    )


ANYRES = _with_prompt(16 + 8 * 4 + 8, _tiles)  # the whole image, its tiles, and a line break per row
OUTER_MODELS = {
    "llava": _llava(),
    "llava-siglip": _llava(SIGLIP, vision_feature_select_strategy="full"),
    "llava-two-layers": _llava(vision_feature_layer=[-2, -1]),
    "llava_next": _llava(name="LlavaNextForConditionalGeneration", inputs=ANYRES, **TILES),
    "llava_onevision": _llava(SIGLIP, "LlavaOnevisionForConditionalGeneration", ANYRES, **TILES),
    "vipllava": _llava(name="VipLlavaForConditionalGeneration", vision_feature_layer=[-2, -1]),
    "paligemma": OuterModel("PaliGemmaForConditionalGeneration", "model.vision_tower", _with_prompt(16), PALIGEMMA),
    "colpali": OuterModel(
        "ColPaliForRetrieval",
        "vlm.vision_tower",
        _with_prompt(16),
        {"vlm_config": {"model_type": "paligemma", **PALIGEMMA}, "embedding_dim": 8},
    ),
    "gemma3": OuterModel("Gemma3ForConditionalGeneration", "model.vision_tower", _with_prompt(4), GEMMA3),
    "aya_vision": _reader(
        "AyaVisionForConditionalGeneration",
        _with_prompt(4),
        vision_config=SIGLIP,
        text_config={"model_type": "cohere2", **TEXT},
        alignment_intermediate_size=16,
        image_token_index=IMAGE_TOKEN,
        vision_feature_select_strategy="full",
    ),
    "cohere2_vision": _reader(
        "Cohere2VisionForConditionalGeneration",
        _with_prompt(4),
        vision_config=SIGLIP,
        text_config={"model_type": "cohere2", **TEXT},
        alignment_intermediate_size=16,
    ),
    "internvl": _reader(
        "InternVLForConditionalGeneration",
        _with_prompt(4),
        vision_config={"model_type": "internvl_vision", **TOWER, "image_size": [16, 16], "patch_size": [4, 4]},
        text_config={"model_type": "qwen2", **TEXT},
    ),
    "deepseek_vl": _reader(
        "DeepseekVLForConditionalGeneration",
        _with_prompt(16),
        "model.vision_model",
        vision_config=SIGLIP,
        text_config=LLAMA,
    ),
    "lfm2_vl": _reader(
        "Lfm2VlForConditionalGeneration",
        _with_prompt(4, _flat_patches),
        vision_config={"model_type": "siglip2_vision_model", **TOWER, "num_patches": 16},
        text_config={"model_type": "lfm2", **TEXT, "layer_types": ["full_attention"]},
        projector_hidden_size=16,
    ),
    "smolvlm": _reader(
        "SmolVLMForConditionalGeneration",
        _with_prompt(4, _one_of_several),
        "model.vision_model",
        vision_config=TOWER,
        text_config=LLAMA,
    ),
    "idefics3": _reader(
        "Idefics3ForConditionalGeneration",
        _with_prompt(4, _one_of_several),
        "model.vision_model",
        vision_config=TOWER,
        text_config=LLAMA,
    ),
    "idefics2": _reader(
        "Idefics2ForConditionalGeneration",
        _with_prompt(3, _one_of_several),
        "model.vision_model",
        vision_config=TOWER,
        text_config={"model_type": "mistral", **TEXT},
        perceiver_config={
            "hidden_size": 16,
            "resampler_n_latents": 3,
            "resampler_depth": 1,
            "resampler_n_heads": 2,
            "resampler_head_dim": 8,
            "num_key_value_heads": 1,
        },
    ),
    "blip_2": OuterModel(
        "Blip2ForConditionalGeneration",
        "vision_model",
        _with_prompt(3),
        {
            "vision_config": TOWER,
            "qformer_config": QFORMER,
            "text_config": OPT,
            "num_query_tokens": 3,
            "image_token_index": IMAGE_TOKEN,
        },
    ),
    "blip_2-retrieval": OuterModel(
        "Blip2ForImageTextRetrieval",
        "vision_model",
        _with_prompt(3, _masked),
        {
            "vision_config": TOWER,
            "qformer_config": {**QFORMER, "use_qformer_text_input": True},
            "text_config": OPT,
            "num_query_tokens": 3,
            "image_text_hidden_size": 8,
            "image_token_index": IMAGE_TOKEN,
        },
        texts_meet_images=True,
    ),
    "instructblip": OuterModel(
        "InstructBlipForConditionalGeneration",
        "vision_model",
        _with_prompt(3, _prompts_for_qformer),
        {
            "vision_config": TOWER,
            "qformer_config": QFORMER,
            "text_config": OPT,
            "num_query_tokens": 3,
            "image_token_index": IMAGE_TOKEN,
        },
    ),
    "blip": _dual("BlipForConditionalGeneration"),
    "blip-retrieval": _dual("BlipForImageTextRetrieval"),
    "blip-questions": _dual(
        "BlipForQuestionAnswering",
        inputs=lambda count: {**_text(count), "decoder_input_ids": _text(count)["input_ids"]},
    ),
    "clip": _dual("CLIPModel"),
    "siglip": _dual("SiglipModel"),
    "siglip2": _dual(
        "Siglip2Model",
        vision={**TOWER, "num_patches": 16},
        inputs=lambda count: {**_text(count), **_flat_patches(count)},
    ),
    "chinese_clip": _dual("ChineseCLIPModel"),
    "metaclip_2": _dual("MetaClip2Model"),
    "aimv2": _dual("Aimv2Model"),
    "clipseg": _dual("CLIPSegModel"),
    "clipseg-segmentation": _dual(
        "CLIPSegForImageSegmentation",
        "clip.vision_model",
        extract_layers=[0, 1, 2],
        reduce_dim=8,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
    ),
    "owlvit": _dual("OwlViTModel"),
    "owlvit-detection": _dual(
        "OwlViTForObjectDetection", "owlvit.vision_model", inputs=_text_of_ones, projection_dim=16
    ),
    "owlv2": _dual("Owlv2Model"),
    "owlv2-detection": _dual("Owlv2ForObjectDetection", "owlv2.vision_model", inputs=_text_of_ones, projection_dim=16),
    "tipsv2": _dual("Tipsv2Model"),
    "dual_encoder": _dual(
        "VisionTextDualEncoderModel", vision={"model_type": "vit", **TOWER}, text={"model_type": "bert", **TINY_TEXT}
    ),
    "dual_encoder-clip": _dual("VisionTextDualEncoderModel", vision=CLIP, text={"model_type": "bert", **TINY_TEXT}),
    "encoder_decoder": OuterModel(
        "VisionEncoderDecoderModel",
        "encoder",
        _start_of_answer,
        {
            "encoder": {"model_type": "vit", **TOWER},
            "decoder": {"model_type": "bert", **TEXT, "is_decoder": True, "add_cross_attention": True},
        },
    ),
    "depth_anything": _dense(
        "DepthAnythingForDepthEstimation", head_hidden_size=4, patch_size=4, reassemble_hidden_size=16, **NECK
    ),
    "prompt_depth_anything": _dense(
        "PromptDepthAnythingForDepthEstimation",
        head_hidden_size=4,
        patch_size=4,
        reassemble_hidden_size=16,
        inputs=lambda count: {**_pixels(count), "prompt_depth": images(count)[:, :1].abs()},
        **NECK,
    ),
    "dpt": _dense("DPTForDepthEstimation", hidden_size=16, patch_size=4, **NECK),
    "zoedepth": _dense(
        "ZoeDepthForDepthEstimation",
        {**FOUR_STAGES, "reshape_hidden_states": False},
        neck_hidden_sizes=[8] * 4,
        fusion_hidden_size=8,
        bottleneck_features=8,
        num_relative_features=4,
        num_attractors=[2] * 4,
        bin_embedding_dim=8,
        bin_configurations=[{"n_bins": 4, "min_depth": 0.001, "max_depth": 10.0}],
    ),
    "vitmatte": _dense(
        "VitMatteForImageMatting",
        {**BACKBONE, "out_features": ["stage3"]},
        hidden_size=16,
        convstream_hidden_sizes=[4],
        fusion_hidden_sizes=[8, 4],
    ),
    "upernet": _dense(
        "UperNetForSemanticSegmentation",
        FOUR_STAGES,
        hidden_size=8,
        pool_scales=[1, 2],
        auxiliary_channels=4,
        auxiliary_in_channels=16,
    ),
    "detr": _dense(
        "DetrForObjectDetection",
        {**BACKBONE, "out_features": ["stage3"]},
        "model.backbone.model",
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        num_queries=3,
    ),
    "mask2former": _dense(
        "Mask2FormerForUniversalSegmentation",
        FOUR_STAGES,
        "model.pixel_level_module.encoder",
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=8,
        dim_feedforward=8,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=3,
    ),
    "conditional_detr": _dense(
        "ConditionalDetrForObjectDetection",
        {**BACKBONE, "out_features": ["stage3"]},
        "model.backbone.model",
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        num_queries=3,
    ),
    "upernet-dinov3": _dense(
        "UperNetForSemanticSegmentation",
        {**FOUR_STAGES, "model_type": "dinov3_vit"},
        hidden_size=8,
        pool_scales=[1, 2],
        auxiliary_channels=4,
        auxiliary_in_channels=16,
    ),
    "llava_next_video": _llava(
        name="LlavaNextVideoForConditionalGeneration", inputs=ANYRES, video_token_index=38, **TILES
    ),
    "modernvbert": _reader(
        "ModernVBertModel",
        _with_prompt(4, _one_of_several),
        "vision_model",
        vision_config=SIGLIP,
        text_config={"model_type": "modernbert", **TEXT},
        pixel_shuffle_factor=2,
    ),
    "video_llava": _llava(
        name="VideoLlavaForConditionalGeneration",
        inputs=_with_prompt(16, _among_videos),
        tower="model.image_tower",
        towers=("model.video_tower", "model.image_tower"),
        video_token_index=38,
    ),
    **{
        f"depth_pro-{path.split('.')[-2]}": OuterModel(
            "DepthProForDepthEstimation", path, _larger, DEPTH_PRO, towers=DEPTH_PRO_TOWERS
        )
        for path in DEPTH_PRO_TOWERS
    },
}


def outer_models_list() -> str:
    """The classes, as `docs/families.md` lists them."""
    names = sorted({model.class_name for model in OUTER_MODELS.values()})
    return ", ".join(f"`{name}`" for name in names)
