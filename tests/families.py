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
    CLIPForImageClassification,
    CLIPModel,
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
    IJepaForImageClassification,
    IJepaModel,
    InternVLVisionModel,
    MetaClip2ForImageClassification,
    MetaClip2Model,
    MetaClip2VisionModel,
    MetaClip2VisionModelWithProjection,
    PreTrainedModel,
    Siglip2ForImageClassification,
    Siglip2Model,
    Siglip2VisionModel,
    SiglipForImageClassification,
    SiglipModel,
    SiglipVisionModel,
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
    """A family as the tests know it, found out independently of the code under test.

    Args:
        name: of the cases.
        heads: stock classes, the bare model first.
        config_fields: over `TINY`.
        blocks: dotted path of the list of blocks, below the trunk.
        reads_embeddings: the first module that reads the embeddings' output.
        trunk: attribute that holds the trunk inside a model with a head, backbones excepted.
        num_prefix_tokens: tokens in front of the patches.
        neurons: of a layer.
        file: what the two files of the family are named after.
    """

    name: str
    heads: tuple[type[PreTrainedModel], ...]
    config_fields: Mapping[str, Any] = field(default_factory=dict)
    blocks: str = "encoder.layer"
    reads_embeddings: str = "encoder.layer.0"
    trunk: str = "dinov2"
    num_prefix_tokens: int = 1
    neurons: int = 64
    file: str = "dinov2"


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
        config._attn_implementation = attention
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.default_generator.manual_seed(seed)
            model = self.stock_class(config).eval()
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        return model

    def feature(self, outputs: Any) -> Tensor:
        """What a classifier reads of a stock trunk: its pooled output, else CLS, else the mean patch; `(B, D)`."""
        if outputs.get("pooler_output") is not None:
            return outputs.pooler_output
        tokens = outputs.last_hidden_state
        return tokens[:, 0] if self.family.num_prefix_tokens else tokens.mean(1)

    def trunk_of(self, model: nn.Module) -> nn.Module:
        return getattr(model, self.family.trunk, model)

    def blocks_of(self, model: nn.Module) -> nn.ModuleList:
        return self.trunk_of(model).get_submodule(self.family.blocks)


CLIP_PARTS = {"blocks": "encoder.layers", "trunk": "vision_model"}
SIGLIP_PARTS = {**CLIP_PARTS, "reads_embeddings": "encoder.layers.0", "num_prefix_tokens": 0}
VIT_PARTS = {"blocks": "layers", "reads_embeddings": "layers.0"}
DINOV2_HEADS = (Dinov2Model, Dinov2ForImageClassification, Dinov2Backbone)
FAMILIES = [
    FamilyUnderTest("dinov2", DINOV2_HEADS),
    FamilyUnderTest("dinov2-swiglu", DINOV2_HEADS, {"use_swiglu_ffn": True}, neurons=48),
    FamilyUnderTest(
        "dinov2_with_registers",
        (Dinov2WithRegistersModel, Dinov2WithRegistersForImageClassification, Dinov2WithRegistersBackbone),
        {"num_register_tokens": 2},
        trunk="dinov2_with_registers",
        num_prefix_tokens=3,
        file="dinov2_with_registers",
    ),
    *(
        FamilyUnderTest(
            name,
            (DINOv3ViTModel, DINOv3ViTBackbone),
            {"intermediate_size": 40, "num_register_tokens": 2, "pos_embed_rescale": None, **fields},
            blocks="model.layer",
            reads_embeddings="model.layer.0",
            trunk="none",
            num_prefix_tokens=3,
            neurons=40,
            file="dinov3_vit",
        )
        for name, fields in (("dinov3", {}), ("dinov3-gated", {"use_gated_mlp": True}))
    ),
    FamilyUnderTest(
        "vit",
        (ViTModel, ViTForImageClassification),
        {"intermediate_size": 40},
        trunk="vit",
        neurons=40,
        file="vit",
        **VIT_PARTS,
    ),
    FamilyUnderTest(
        "deit",
        (DeiTModel, DeiTForImageClassification, DeiTForImageClassificationWithTeacher),
        {"intermediate_size": 40},
        trunk="deit",
        num_prefix_tokens=2,
        neurons=40,
        file="deit",
        **VIT_PARTS,
    ),
    FamilyUnderTest(
        "siglip",
        (SiglipVisionModel, SiglipModel, SiglipForImageClassification),
        {"intermediate_size": 40},
        neurons=40,
        file="siglip",
        **SIGLIP_PARTS,
    ),
    FamilyUnderTest(
        "siglip2",
        (Siglip2VisionModel, Siglip2Model, Siglip2ForImageClassification),
        {"intermediate_size": 40, "num_patches": NUM_PATCHES},
        neurons=40,
        file="siglip2",
        **SIGLIP_PARTS,
    ),
    FamilyUnderTest(
        "clip",
        (CLIPVisionModel, CLIPVisionModelWithProjection, CLIPModel, CLIPForImageClassification),
        {"intermediate_size": 40},
        reads_embeddings="pre_layrnorm",
        neurons=40,
        file="clip",
        **CLIP_PARTS,
    ),
    FamilyUnderTest(
        "metaclip_2",
        (MetaClip2VisionModel, MetaClip2VisionModelWithProjection, MetaClip2Model, MetaClip2ForImageClassification),
        {"intermediate_size": 40},
        reads_embeddings="pre_layrnorm",
        neurons=40,
        file="metaclip_2",
        **CLIP_PARTS,
    ),
    FamilyUnderTest(
        "altclip",
        (AltCLIPVisionModel,),
        {"intermediate_size": 40},
        reads_embeddings="pre_layrnorm",
        neurons=40,
        file="altclip",
        **CLIP_PARTS,
    ),
    FamilyUnderTest(
        "aimv2",
        (Aimv2VisionModel, Aimv2Model),
        {"intermediate_size": 40},
        neurons=40,
        file="aimv2",
        **SIGLIP_PARTS,
    ),
    FamilyUnderTest(
        "ijepa",
        (IJepaModel, IJepaForImageClassification),
        {"intermediate_size": 40},
        trunk="ijepa",
        num_prefix_tokens=0,
        neurons=40,
        file="ijepa",
        **VIT_PARTS,
    ),
    FamilyUnderTest(
        "vit_msn",
        (ViTMSNModel, ViTMSNForImageClassification),
        {"intermediate_size": 40},
        trunk="vit",
        neurons=40,
        file="vit_msn",
        **VIT_PARTS,
    ),
    FamilyUnderTest(
        "internvl_vision",
        (InternVLVisionModel,),
        {"intermediate_size": 40, "use_qk_norm": True},
        trunk="none",
        neurons=40,
        file="internvl_vision",
    ),
]
CASES = [Case(family, head) for family in FAMILIES for head in family.heads]
BARE_CASES = [case for case in CASES if case.is_bare]


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
