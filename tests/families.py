"""The matrix: every family and every head that the laws are tested on. A new family is one line of `FAMILIES`."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    Aimv2Model,
    Aimv2VisionModel,
    AltCLIPVisionModel,
    Blip2VisionModel,
    BlipModel,
    BlipVisionModel,
    ChineseCLIPModel,
    ChineseCLIPVisionModel,
    CLIPForImageClassification,
    CLIPModel,
    CLIPSegModel,
    CLIPSegVisionModel,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    DeiTModel,
    Dinov2Backbone,
    Dinov2ForImageClassification,
    Dinov2Model,
    Dinov2WithRegistersBackbone,
    Dinov2WithRegistersForImageClassification,
    Dinov2WithRegistersModel,
    DINOv3ViTBackbone,
    DINOv3ViTModel,
    Idefics3VisionTransformer,
    IJepaForImageClassification,
    IJepaModel,
    InstructBlipVisionModel,
    InternVLVisionModel,
    JanusVisionModel,
    MetaClip2ForImageClassification,
    MetaClip2Model,
    MetaClip2VisionModel,
    MetaClip2VisionModelWithProjection,
    Owlv2VisionModel,
    OwlViTVisionModel,
    PixioBackbone,
    PixioModel,
    PreTrainedModel,
    RadioModel,
    Siglip2ForImageClassification,
    Siglip2Model,
    Siglip2VisionModel,
    SiglipForImageClassification,
    SiglipModel,
    SiglipVisionModel,
    SmolVLMVisionTransformer,
    Tipsv2VisionBackbone,
    Tipsv2VisionModel,
    ViTForImageClassification,
    ViTModel,
    ViTMSNForImageClassification,
    ViTMSNModel,
)

SIZE, PATCH_SIZE, NUM_PATCHES = 16, 4, 16
TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": SIZE,
    "patch_size": PATCH_SIZE,
}
TINY_TEXT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 20,
    "max_position_embeddings": 8,
    "projection_size": 16,
    "bos_token_id": 0,
    "pad_token_id": 1,
    "eos_token_id": 19,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
# out of order, the first and the last layer among them, several neurons in one; indices that every family has
NEURONS = [[1, 5], [0, 3], [1, 0], [2, 7], [1, 2]]
# what a head needs beside the family's fields
HEAD_FIELDS = {
    "Backbone": {"out_features": ["stem", "stage1", "stage3"]},
    "ForImageClassification": {"num_labels": 5},
    "WithTeacher": {"num_labels": 5},
}


@dataclass(frozen=True)
class FamilyUnderTest:
    """A family as the tests know it, from its documentation and not from the code under test.

    Args:
        name: of the cases.
        heads: stock classes, the bare model first.
        config_fields: over `TINY`.
        num_prefix_tokens: tokens in front of the patches.
        lacks: what its stock classes do not have: `"sdpa"` attention, or a `"mask"` over pairs of tokens.
    """

    name: str
    heads: tuple[type[PreTrainedModel], ...]
    config_fields: Mapping[str, Any] = field(default_factory=dict)
    num_prefix_tokens: int = 1
    lacks: tuple[str, ...] = ()

    @property
    def model_type(self) -> str:
        return self.heads[0].config_class.model_type


@dataclass(frozen=True)
class Case:
    """One family with one head."""

    family: FamilyUnderTest
    stock_class: type[PreTrainedModel]

    @property
    def name(self) -> str:
        return f"{self.family.name}-{self.stock_class.__name__}"

    @property
    def config_class(self) -> Any:
        return self.stock_class.config_class

    @property
    def has_two_towers(self) -> bool:
        return bool(self.config_class.sub_configs)

    def fields(self, **config_fields: Any) -> dict[str, Any]:
        """What the stock config is made from; `config_fields` are the vision tower's."""
        head = next((fields for name, fields in HEAD_FIELDS.items() if self.stock_class.__name__.endswith(name)), {})
        fields = {**TINY, **self.family.config_fields}
        if self.has_two_towers:
            return {"vision_config": {**fields, **config_fields}, "text_config": TINY_TEXT, **head}
        return {**fields, **head, **config_fields}

    @property
    def is_bare(self) -> bool:
        return self.stock_class is self.family.heads[0]

    @property
    def is_backbone(self) -> bool:
        return self.stock_class.__name__.endswith("Backbone")

    def stock_model(self, *, seed: int = 0, attention: str = "eager", **config_fields: Any) -> PreTrainedModel:
        """A stock model with weights large enough that every part of it matters, in eval mode."""
        config = self.config_class(**self.fields(**config_fields))
        config._attn_implementation = "eager" if attention in self.family.lacks else attention
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.default_generator.manual_seed(seed)
            model = self.stock_class(config).eval()
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        return model

    def blocks_of(self, model: nn.Module) -> nn.ModuleList:
        """The longest list of modules: text towers here have one layer."""
        return max((module for module in model.modules() if isinstance(module, nn.ModuleList)), key=len)

    def trunk_of(self, model: nn.Module) -> nn.Module:
        """The innermost module that holds both embeddings and blocks."""
        blocks = self.blocks_of(model)
        return [module for module in model.modules() if _is_around(module, blocks)][-1]

    def reads_embeddings(self, model: nn.Module) -> nn.Module:
        """The first module that reads the embeddings' output: a LayerNorm or a block."""
        norms = (name for name, _ in self.trunk_of(model).named_children() if name.startswith("pre_"))
        name = next(norms, None)
        return self.blocks_of(model)[0] if name is None else self.trunk_of(model).get_submodule(name)


def _is_around(module: nn.Module, blocks: nn.ModuleList) -> bool:
    return hasattr(module, "embeddings") and any(each is blocks for each in module.modules())


# families in which no field says how wide the MLP is take 4 x hidden_size
NARROW = {"intermediate_size": 40}
DINOV2_HEADS = (Dinov2Model, Dinov2ForImageClassification, Dinov2Backbone)
DINOV3 = {**NARROW, "num_register_tokens": 2, "pos_embed_rescale": None}
FAMILIES = [
    FamilyUnderTest("dinov2", DINOV2_HEADS),
    FamilyUnderTest("dinov2-swiglu", DINOV2_HEADS, {"use_swiglu_ffn": True}),
    FamilyUnderTest(
        "dinov2_with_registers",
        (Dinov2WithRegistersModel, Dinov2WithRegistersForImageClassification, Dinov2WithRegistersBackbone),
        {"num_register_tokens": 2},
        num_prefix_tokens=3,
    ),
    FamilyUnderTest("dinov3", (DINOv3ViTModel, DINOv3ViTBackbone), DINOV3, num_prefix_tokens=3),
    FamilyUnderTest(
        "dinov3-gated", (DINOv3ViTModel, DINOv3ViTBackbone), {**DINOV3, "use_gated_mlp": True}, num_prefix_tokens=3
    ),
    FamilyUnderTest("vit", (ViTModel, ViTForImageClassification), NARROW),
    FamilyUnderTest(
        "deit",
        (DeiTModel, DeiTForImageClassification, DeiTForImageClassificationWithTeacher),
        NARROW,
        num_prefix_tokens=2,
    ),
    FamilyUnderTest(
        "siglip", (SiglipVisionModel, SiglipModel, SiglipForImageClassification), NARROW, num_prefix_tokens=0
    ),
    FamilyUnderTest(
        "siglip2",
        (Siglip2VisionModel, Siglip2Model, Siglip2ForImageClassification),
        {**NARROW, "num_patches": NUM_PATCHES},
        num_prefix_tokens=0,
        lacks=("mask",),
    ),
    FamilyUnderTest(
        "clip", (CLIPVisionModel, CLIPVisionModelWithProjection, CLIPModel, CLIPForImageClassification), NARROW
    ),
    FamilyUnderTest(
        "metaclip_2",
        (MetaClip2VisionModel, MetaClip2VisionModelWithProjection, MetaClip2Model, MetaClip2ForImageClassification),
        NARROW,
    ),
    FamilyUnderTest("altclip", (AltCLIPVisionModel,), NARROW),
    FamilyUnderTest("chinese_clip", (ChineseCLIPVisionModel, ChineseCLIPModel), NARROW),
    FamilyUnderTest("clipseg", (CLIPSegVisionModel, CLIPSegModel), NARROW),
    FamilyUnderTest("owlvit", (OwlViTVisionModel,), NARROW),
    FamilyUnderTest("owlv2", (Owlv2VisionModel,), NARROW),
    FamilyUnderTest("blip", (BlipVisionModel, BlipModel), NARROW, lacks=("sdpa", "mask")),
    FamilyUnderTest("blip_2", (Blip2VisionModel,), NARROW, lacks=("mask",)),
    FamilyUnderTest("instructblip", (InstructBlipVisionModel,), NARROW, lacks=("mask",)),
    FamilyUnderTest("idefics3", (Idefics3VisionTransformer,), NARROW, 0, ("mask",)),
    FamilyUnderTest("smolvlm", (SmolVLMVisionTransformer,), NARROW, 0, ("mask",)),
    FamilyUnderTest("janus", (JanusVisionModel,), NARROW, num_prefix_tokens=0),
    FamilyUnderTest("aimv2", (Aimv2VisionModel, Aimv2Model), NARROW, num_prefix_tokens=0),
    FamilyUnderTest("ijepa", (IJepaModel, IJepaForImageClassification), NARROW, num_prefix_tokens=0),
    FamilyUnderTest("vit_msn", (ViTMSNModel, ViTMSNForImageClassification), NARROW),
    FamilyUnderTest("internvl_vision", (InternVLVisionModel,), {**NARROW, "use_qk_norm": True}, lacks=("mask",)),
    FamilyUnderTest("pixio", (PixioModel,), {**NARROW, "n_cls_tokens": 2}, num_prefix_tokens=2),
    FamilyUnderTest(
        "radio",
        (RadioModel,),
        {**NARROW, "num_cls_tokens": 2, "num_registers": 3, "summary_idxs": [0]},
        num_prefix_tokens=5,
    ),
    FamilyUnderTest(
        "tipsv2", (Tipsv2VisionModel, Tipsv2VisionBackbone), {**NARROW, "num_register_tokens": 2}, num_prefix_tokens=3
    ),
]
CASES = [Case(family, head) for family in FAMILIES for head in family.heads]
BARE_CASES = [case for case in CASES if case.is_bare]
# every family, and one of each kind of head
_ENDINGS = ("ForImageClassification", "WithTeacher", "Backbone", "WithProjection", "Model")
ONE_OF_EACH_HEAD = {
    next(ending for ending in _ENDINGS if case.stock_class.__name__.endswith(ending)): case
    for case in reversed(CASES)
    if not case.is_bare
}
LAW_CASES = [case for case in CASES if case.is_bare or case in ONE_OF_EACH_HEAD.values()]
# one family for each mechanism, for tests that are not about the family: fused queries, gated MLPs, RoPE, masks made
# of the patches, two classes around one trunk, an output of patches only, pooling heads
_ONE_OF_EACH = ("dinov2", "dinov2-swiglu", "dinov3", "vit", "siglip", "siglip2", "clip", "blip", "smolvlm", "radio")
SOME_CASES = [case for case in LAW_CASES if case.family.name in _ONE_OF_EACH or not case.is_bare]
# for what every class inherits from one place: a bare model, one inside a head, one that transformers hooks when it is
# made, and one beside another tower
INHERITING_CASES = [
    case
    for name in ("Dinov2Model", "Dinov2ForImageClassification", "Dinov2Backbone", "CLIPModel")
    for case in CASES
    if case.name in (f"dinov2-{name}", f"clip-{name}")
]
# saved and loaded, the two LayerNorms of transformers' own class change places (5.24), so it is tested in memory only
PIXIO_BACKBONE = Case(next(family for family in FAMILIES if family.name == "pixio"), PixioBackbone)


def images(count: int = 3, *, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def inputs(model: Any, pixel_values: Tensor) -> dict[str, Tensor]:
    """What a model's `forward` takes to see images `(B, 3, H, W)`; two texts beside them where it reads text too."""
    names = inspect.signature(model.forward).parameters
    given = {"pixel_values": pixel_values}
    if "spatial_shapes" in names:
        patches = pixel_values.unfold(2, PATCH_SIZE, PATCH_SIZE).unfold(3, PATCH_SIZE, PATCH_SIZE)
        count, grid = len(pixel_values), patches.shape[2:4]
        given = {
            # (B, 3, h, w, p, p) -> (B, h * w, p * p * 3)
            "pixel_values": patches.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2),
            "pixel_attention_mask": torch.ones(count, grid[0] * grid[1], dtype=torch.long),
            "spatial_shapes": torch.tensor([list(grid)] * count),
        }
    if "input_ids" in names:
        given["input_ids"] = torch.tensor([[0, 5, 6, 19], [0, 7, 8, 19]])
    return given
