"""Checkpoints: what is saved, and what loads from stock, old and patched folders."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from families import CASES, NEURONS, Case, images
from safetensors.torch import load_file, save_file

from modeling.laws import assert_equal_outputs, down_projection, patched_class, patched_model, run
from ttreg_hf import modeling

WITH_HEADS = [case for case in CASES if not case.is_bare]
HEADS = [case for case in WITH_HEADS if not case.has_two_towers]  # made on a bare checkpoint
CLASSIFIERS = [case for case in CASES if case.stock_class.__name__.endswith("ForImageClassification")]
KINDS = ("missing_keys", "unexpected_keys", "mismatched_keys")
# names before transformers 5.20 (DINOv2), 5.14 (ViT) and 5.6 (CLIP), by the model type of the tower
OLD_ATTENTION = [
    (r"attention\.q_proj", "attention.attention.query"),
    (r"attention\.k_proj", "attention.attention.key"),
    (r"attention\.v_proj", "attention.attention.value"),
    (r"attention\.o_proj", "attention.output.dense"),
]
OLD_VIT = [
    *OLD_ATTENTION,
    (r"mlp\.fc1", "intermediate.dense"),
    (r"mlp\.fc2", "output.dense"),
    (r"(^|\.)layers\.", r"\1encoder.layer."),
]
OLD_DINOV2 = [*OLD_ATTENTION, (r"mlp\.down_proj", "mlp.weights_out")]
OLD_PIXIO = [*OLD_VIT, ("layernorm_before", "norm1"), ("layernorm_after", "norm2")]
OLD_TOWER = [(r"^", "vision_model.")]
OLD_NAMES = {
    "dinov2": OLD_DINOV2,
    "dinov2_with_registers": OLD_DINOV2,
    "dinov3_vit": [(r"(^|\.)model\.layer\.", r"\1layer.")],
    "vit": OLD_VIT,
    "deit": OLD_VIT,
    "clip_vision_model": OLD_TOWER,
    "siglip_vision_model": OLD_TOWER,
    "siglip2_vision_model": OLD_TOWER,
    "metaclip_2_vision_model": OLD_TOWER,
    "altclip_vision_model": OLD_TOWER,
    "pixio": OLD_PIXIO,
    "ijepa": OLD_VIT,
    "vit_msn": OLD_VIT,
    # those whose first names are today's
    "aimv2_vision_model": [],
    "blip_2_vision_model": [],
    "blip_vision_model": [],
    "chinese_clip_vision_model": [],
    "clipseg_vision_model": [],
    "idefics3_vision": [],
    "instructblip_vision_model": [],
    "internvl_vision": [],
    "janus_vision_model": [],
    "owlv2_vision_model": [],
    "owlvit_vision_model": [],
    "radio": [],
    "smolvlm_vision": [],
    "tipsv2_vision_model": [],
}


def _old_layout(case, state):
    """A state dict as the first releases of the family saved it."""
    patterns = OLD_NAMES[case.family.model_type]
    if patterns is OLD_TOWER and not case.is_bare:
        return state  # models with a head kept the names of their tower
    old = {}
    for name, tensor in state.items():
        if ".gate_proj." in name and case.family.model_type not in ("dinov3_vit", "aimv2_vision_model"):
            name, tensor = (
                name.replace("gate_proj", "weights_in"),
                torch.cat([tensor, state[name.replace("gate", "up")]]),
            )
        elif ".up_proj." in name and case.family.model_type not in ("dinov3_vit", "aimv2_vision_model"):
            continue
        for pattern, replacement in patterns:
            name = re.sub(pattern, replacement, name)
        old[name] = tensor.contiguous()
    return old


def _stock_config(case, stock):
    """Where transformers keeps other names on disk than in memory, it finds them by the config's type."""
    return {"config": stock.config} if case.family.model_type in ("pixio", "radio") else {}


def _save(folder, model, state):
    folder.mkdir(exist_ok=True)
    model.config.save_pretrained(folder)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _load(cls, folder, **options):
    model, info = cls.from_pretrained(folder, output_loading_info=True, attn_implementation="eager", **options)
    return model, {kind: sorted(map(str, info[kind])) for kind in KINDS if info[kind]}


@dataclass(frozen=True)
class Saved:
    """A stock model, its patched model, and the folder of that."""

    stock: Any
    model: Any
    folder: Path


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Case], Saved]:
    """A function that patches and saves a case, once."""
    done: dict[str, Saved] = {}

    def save(case: Case) -> Saved:
        if case.name not in done:
            stock, folder = case.stock_model(), tmp_path_factory.mktemp("saved")
            model = patched_model(modeling, case, stock, shift_fill="mean", num_test_time_registers=2)
            model.save_pretrained(folder)
            done[case.name] = Saved(stock, model, folder)
        return done[case.name]

    return save


def test_saved_tensors_have_the_stock_models_names_and_values(every_case, saved, tmp_path):
    patched = saved(every_case)
    patched.stock.save_pretrained(tmp_path)
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (patched.folder, tmp_path))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_saved_model_loads_with_equal_outputs(every_case, saved):
    patched = saved(every_case)
    loaded, problems = _load(type(patched.model), patched.folder)
    assert problems == {}
    assert_equal_outputs(run(loaded, images()), run(patched.model, images()))


def test_the_stock_class_reads_a_patched_checkpoint(every_case, saved):
    patched = saved(every_case)
    loaded, problems = _load(every_case.stock_class, patched.folder, **_stock_config(every_case, patched.stock))
    assert problems == {}
    assert_equal_outputs(run(loaded, images()), run(patched.stock, images()))


@pytest.mark.parametrize("case", WITH_HEADS, ids=lambda case: case.name)
def test_a_bare_model_from_a_checkpoint_with_a_head_loads_like_stock(case, saved):
    patched, bare = saved(case), case.family.heads[0]
    cls = patched_class(modeling, next(other for other in CASES if other.stock_class is bare))
    loaded, problems = _load(cls, patched.folder)
    assert problems == _load(bare, patched.folder, **_stock_config(case, patched.stock))[1]
    assert loaded.config.register_neurons == NEURONS


@pytest.mark.parametrize("case", CLASSIFIERS, ids=lambda case: case.name)
def test_a_head_of_another_size_is_new_where_stock_makes_it_new(case, saved):
    options = {"num_labels": 7, "ignore_mismatched_sizes": True}
    patched = saved(case)
    _, problems = _load(type(patched.model), patched.folder, **options)
    assert problems == _load(case.stock_class, patched.folder, **options)[1]
    assert list(problems) == ["mismatched_keys"]


def test_a_stock_checkpoint_loads_with_neurons_given(bare_case, tmp_path):
    stock = bare_case.stock_model()
    stock.save_pretrained(tmp_path)
    loaded, problems = _load(patched_class(modeling, bare_case), tmp_path, register_neurons=NEURONS)
    assert problems == {}
    assert_equal_outputs(run(loaded, images()), run(patched_model(modeling, bare_case, stock), images()))


def test_an_old_stock_checkpoint_loads_in_full(every_case, tmp_path):
    stock = every_case.stock_model()
    folder = _save(tmp_path / "old", stock, _old_layout(every_case, stock.state_dict()))
    loaded, problems = _load(patched_class(modeling, every_case), folder)
    assert problems == {}
    assert_equal_outputs(run(loaded, images()), run(stock, images()))


def test_an_old_patched_checkpoint_loads_in_full(bare_case, tmp_path):
    model = patched_model(modeling, bare_case, bare_case.stock_model())
    loaded, problems = _load(type(model), _save(tmp_path / "old", model, _old_layout(bare_case, model.state_dict())))
    assert problems == {}
    assert_equal_outputs(run(loaded, images()), run(model, images()))


def test_keys_that_the_stock_class_misses_too_are_no_error(bare_case, tmp_path):
    stock = bare_case.stock_model()
    state = stock.state_dict()
    missing = next(name for name in state if name.endswith(("k_proj.weight", "qkv.weight")))
    del state[missing]
    folder = _save(tmp_path / "folder", stock, state | {"extra.weight": torch.zeros(1)})
    _, problems = _load(patched_class(modeling, bare_case), folder)
    assert problems == _load(bare_case.stock_class, folder)[1]
    assert problems["missing_keys"] == [missing]


@pytest.mark.parametrize("case", HEADS, ids=lambda case: case.name)
def test_a_new_head_on_a_bare_checkpoint_loads_like_stock(case, tmp_path):
    bare = case.family.heads[0](case.stock_model().config)
    bare.save_pretrained(tmp_path)
    loaded, problems = _load(patched_class(modeling, case), tmp_path, register_neurons=NEURONS, num_labels=5)
    as_stock, expected = _load(case.stock_class, tmp_path, num_labels=5)
    assert problems == expected
    ours, theirs, saved = (down_projection(case.blocks_of(each)[0]).weight for each in (loaded, as_stock, bare))
    # transformers 5.18 does not find a bare CLIP tower's weights for the tower with a projection
    assert torch.equal(ours, saved) == torch.equal(theirs, saved)


@pytest.mark.parametrize("output_loading_info", [True, False])
def test_from_pretrained_returns_what_the_stock_class_returns(inheriting_case, tmp_path, output_loading_info):
    model = patched_model(modeling, inheriting_case, inheriting_case.stock_model())
    model.save_pretrained(tmp_path)
    found = type(model).from_pretrained(
        pretrained_model_name_or_path=tmp_path, output_loading_info=output_loading_info
    )
    assert isinstance(found, tuple) == output_loading_info


def test_a_dtype_asked_for_is_loaded(inheriting_case, tmp_path):
    model = patched_model(modeling, inheriting_case, inheriting_case.stock_model())
    model.save_pretrained(tmp_path)
    loaded, _ = _load(type(model), tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    run(loaded, images().bfloat16())
