"""Which models can be patched, and what the others are told."""

import json
import re
from pathlib import Path

import pytest
import transformers
from families import CASES

from ttreg_hf.applying import add_test_time_registers
from ttreg_hf.families import REFUSED, families_table, supported_model_types
from ttreg_hf.loading import load_model

ROOT = Path(__file__).parents[1]
TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
# tiny models of the types that are refused; timm_wrapper needs timm
STAGES = {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 1], "window_size": 2, "image_size": 32}
CONVOLUTIONS = {"hidden_sizes": [8, 8], "depths": [1, 1]}
REFUSED_MODELS = {
    "beit": ("BeitModel", TINY),
    "data2vec-vision": ("Data2VecVisionModel", TINY),
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
    around_a_tower = {"depth_anything", "dpt", "llava", "llava_next"}  # modeling/test_towers.py
    assert supported_model_types() == sorted({case.config_class.model_type for case in CASES} | around_a_tower)


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
        rf"{re.escape(REFUSED[model_type])}\. Supported are .*Dinov2Model"
    )
    with pytest.raises(ValueError, match=expected):
        add_test_time_registers(model, [[0, 1]])


@pytest.mark.parametrize("model_type", REFUSED_MODELS)
def test_a_checkpoint_that_cannot_be_patched_is_refused_before_it_is_loaded(model_type, tmp_path):
    name, fields = REFUSED_MODELS[model_type]
    getattr(transformers, name).config_class(**fields).save_pretrained(tmp_path)  # no weights
    with pytest.raises(ValueError, match=re.escape(f"test-time registers: {REFUSED[model_type]}. Sup")):
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


def test_another_head_of_a_supported_family_is_told_so():
    with pytest.raises(ValueError, match=r"'vit'\) cannot .*: this class of the family has no patched version"):
        add_test_time_registers(_model("ViTForMaskedImageModeling", TINY), [[0, 1]])


def test_a_model_that_nobody_has_looked_at_is_pointed_to_the_guide():
    with pytest.raises(ValueError, match=r"nobody has written down where its parts are; CONTRIBUTING\.md"):
        add_test_time_registers(_model("ViTMSNModel", TINY), [[0, 1]])


def test_the_table_in_the_readme_is_current_and_what_is_refused_is_named_below_it():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(f"`{model_type}`" in readme for model_type in REFUSED)
    assert families_table() in readme, "paste what `ttreg_hf.families.families_table()` returns"


@pytest.mark.parametrize("name", ["configuration_deit_ttreg", "modeling_deit_ttreg"])
def test_the_worked_example_in_the_guide_is_the_file_itself(name):
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    source = (ROOT / f"ttreg_hf/modeling/{name}.py").read_text(encoding="utf-8")
    assert source.split("\n\n\n")[1] in guide  # the first class
