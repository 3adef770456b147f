"""Which models can be patched, and what the others are told."""

import json
import re
from pathlib import Path

import pytest
import torch
import transformers
from families import BARE_CASES
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from ttreg_hf import calibrate
from ttreg_hf.applying import add_test_time_registers
from ttreg_hf.known.refusals import REFUSED, refusals_table
from ttreg_hf.known.support import WHERE_TO_LOOK, families_table, supported_model_types
from ttreg_hf.loading import load_model

ROOT = Path(__file__).parents[2]
TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
# tiny models of the types that are refused; timm_wrapper needs timm
STAGES = {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 1], "window_size": 2, "image_size": 32}
CONVOLUTIONS = {"hidden_sizes": [8, 8], "depths": [1, 1]}
REFUSED_MODELS = {
    "beit": ("BeitModel", TINY),
    "data2vec-vision": ("Data2VecVisionModel", TINY),
    "altclip": ("AltCLIPModel", {"vision_config": TINY, "text_config": TINY}),
    "mlcd_vision_model": ("MLCDVisionModel", TINY),
    "swin": ("SwinModel", STAGES),
    "swinv2": ("Swinv2Model", STAGES),
    "hiera": ("HieraModel", {"embed_dim": 8, "num_heads": [1, 2, 4, 8], "depths": [1, 1, 1, 1]}),
    "convnext": ("ConvNextModel", {**CONVOLUTIONS, "num_stages": 2}),
    "convnextv2": ("ConvNextV2Model", {**CONVOLUTIONS, "num_stages": 2}),
    "dinov3_convnext": ("DINOv3ConvNextModel", CONVOLUTIONS),
    "resnet": ("ResNetModel", {"embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1]}),
    "vit_mae": ("ViTMAEModel", TINY),
}


def _model(name, fields):
    cls = getattr(transformers, name)
    return cls(cls.config_class(**fields))


def test_supported_model_types_are_those_of_the_matrix():
    of_the_matrix = {case.config_class.model_type for case in BARE_CASES}
    assert supported_model_types() == sorted(of_the_matrix | {"idefics2_vision"})  # its tower is not exported


def test_no_supported_type_is_refused():
    assert not set(REFUSED) & set(supported_model_types())


def test_every_refused_type_is_one_that_transformers_has():
    known = set(transformers.CONFIG_MAPPING)
    assert {name for name in REFUSED if name not in known} == set()


@pytest.mark.parametrize("model_type", REFUSED_MODELS)
def test_a_model_that_cannot_be_patched_is_refused_with_the_reason(model_type):
    model = _model(*REFUSED_MODELS[model_type])
    expected = (
        rf"^{type(model).__name__} \(model type '{model_type}'\) cannot be given test-time registers: "
        rf"{re.escape(REFUSED[model_type])}\. {re.escape(WHERE_TO_LOOK)}\.$"
    )
    with pytest.raises(ValueError, match=expected):
        add_test_time_registers(model, [[0, 1]])


@pytest.mark.parametrize("model_type", REFUSED_MODELS)
def test_a_checkpoint_that_cannot_be_patched_is_refused_before_it_is_loaded(model_type, tmp_path):
    name, fields = REFUSED_MODELS[model_type]
    getattr(transformers, name).config_class(**fields).save_pretrained(tmp_path)  # no weights
    with pytest.raises(ValueError, match=re.escape(f"test-time registers: {REFUSED[model_type]}. {WHERE_TO_LOOK}.")):
        load_model(str(tmp_path))


def test_a_timm_checkpoint_is_refused_with_the_reason_also_where_timm_is_not_installed(tmp_path):
    fields = {"architecture": "vit_small_patch14_dinov2", "num_features": 384, "pretrained_cfg": {"tag": "lvd142m"}}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(
        ValueError, match=r"'timm_wrapper', which cannot .*so load a transformers version of the check"
    ):
        load_model(str(tmp_path))


def test_a_text_model_is_told_that_it_reads_no_images():
    for name in ("BertModel", "CLIPTextModel"):
        with pytest.raises(ValueError, match=rf"^{name} .* cannot be given test-time registers: it reads no images\."):
            add_test_time_registers(_model(name, TINY), [[0, 1]])


def test_any_head_of_a_supported_family_is_patched():
    stock = _model("ViTForMaskedImageModeling", TINY | {"image_size": 32}).eval()
    patched = add_test_time_registers(stock, [[0, 1]])
    assert type(patched).__name__ == "ViTTTRegForMaskedImageModeling"
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected, found = stock(images).reconstruction, patched(images).reconstruction
        with patched.disable_test_time_registers():
            assert torch.equal(patched(images).reconstruction, expected)
    assert found.shape == expected.shape
    assert not torch.equal(found, expected)


def test_a_class_that_transformers_does_not_have_is_refused():
    class OwnViT(transformers.ViTModel):
        """Nobody else has its code."""

    with pytest.raises(ValueError, match=r"^OwnViT .*: its class is not one of transformers', which a stranger could"):
        add_test_time_registers(OwnViT(transformers.ViTConfig(**TINY)), [[0, 1]])


class _Wrapped(torch.nn.Module):
    """As `DistributedDataParallel` and `torch.compile` hold a model."""

    def __init__(self, name, model):
        super().__init__()
        setattr(self, name, model)


@pytest.mark.filterwarnings("ignore:`torch.jit")  # of what torch calls there
@pytest.mark.parametrize(
    ("wrap", "way"),
    [
        (lambda model: _Wrapped("module", model), r"Give the model inside, `model\.module`, and wrap what you get"),
        (torch.compile, r"Give the model inside, `model\._orig_mod`, and wrap what you get"),
        (lambda model: torch.nn.Linear(2, 2), r"Load it with transformers' `AutoModel\.from_pretrained`"),
    ],
)
def test_what_wraps_a_model_is_told_how_to_get_at_it(wrap, way):
    given = wrap(_model("ViTModel", TINY))
    for call in (lambda: add_test_time_registers(given, [[0, 1]]), lambda: calibrate(given, [])):
        with pytest.raises(TypeError, match=rf"^`model` is a transformers model, got \w+\. {way}\."):
            call()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT asks for the old name
def test_a_model_with_adapters_is_told_how_to_get_at_it():
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(_model("ViTModel", TINY), peft.LoraConfig(target_modules=["fc1"]))
    with pytest.raises(TypeError, match=r"got PeftModel\. Give `model\.merge_and_unload\(\)`"):
        add_test_time_registers(adapted, [[0, 1]])


def test_a_patched_model_that_runs_the_code_of_its_repository_is_told_so(tmp_path):
    add_test_time_registers(_model("ViTModel", TINY), [[0, 1]]).save_pretrained(tmp_path)
    reference = transformers.AutoConfig.from_pretrained(tmp_path).auto_map["AutoModel"]
    carried = get_class_from_dynamic_module(reference, str(tmp_path)).from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"registers: it runs the code that its repository carries\. Import ttreg_hf"):
        add_test_time_registers(carried, [[0, 1]])


def test_a_model_with_two_vision_towers_is_refused_and_they_are_named():
    class Pair(transformers.PreTrainedModel):
        """Two towers side by side."""

        config_class = transformers.ViTConfig

        def __init__(self, config):
            super().__init__(config)
            self.left, self.right = transformers.ViTModel(config), transformers.ViTModel(config)

    with pytest.raises(ValueError, match=r"^Pair .*: it holds several vision towers \(left, right\): say which"):
        add_test_time_registers(Pair(transformers.ViTConfig(**TINY)), [[0, 1]])


def test_a_model_that_nobody_has_looked_at_is_pointed_to_the_guide():
    with pytest.raises(ValueError, match=r"no vision tower of a known family \(CONTRIBUTING\.md shows how one"):
        add_test_time_registers(_model("DPTModel", TINY), [[0, 1]])


@pytest.fixture(scope="module")
def page():
    return (ROOT / "docs" / "families.md").read_text(encoding="utf-8")


def test_the_table_of_families_is_current(page):
    assert families_table() in page, "paste what `ttreg_hf.known.support.families_table()` returns"


def test_the_page_says_why_a_type_is_refused(page):
    assert refusals_table() in page, "paste what `ttreg_hf.known.refusals.refusals_table()` returns"


@pytest.mark.parametrize(
    ("name", "fields", "reason"),
    [
        ("YolosModel", TINY, "tokens behind the patches"),
        ("SamVisionModel", {**TINY, "image_size": 64}, "attends within windows"),
        ("ViltModel", TINY, "text and image in one sequence"),
        ("VideoMAEModel", TINY, "it reads videos"),
        ("PixtralVisionModel", TINY, "packs images into one sequence, which is not supported yet"),
    ],
)
def test_a_refusal_says_why_and_lists_no_families(name, fields, reason):
    with pytest.raises(ValueError, match=reason) as refused:
        add_test_time_registers(_model(name, fields), [[0, 1]])
    assert "siglip" not in str(refused.value)


def test_a_model_whose_tower_is_refused_is_refused_with_the_towers_reason():
    with torch.device("meta"):
        model = _model("Florence2Model", {})
    with pytest.raises(ValueError, match=r"^Florence2Model .*merges or pools its tokens"):
        add_test_time_registers(model, [[0, 1]])
