"""Models around a vision tower: the tower is patched inside, and what reads it receives what it received before."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from families import images
from safetensors.torch import load_file, save_file
from transformers import (
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Dinov2Config,
    DPTConfig,
    DPTForDepthEstimation,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
)

from modeling.laws import reading
from modeling.test_checkpoints import OLD_DINOV2
from ttreg_hf import add_test_time_registers
from ttreg_hf.loading import load_model
from ttreg_hf.measuring.image_maps import image_maps
from ttreg_hf.measuring.recorder import Recorder
from ttreg_hf.measuring.tower import VisionTower
from ttreg_hf.publishing.checkpoint import save_checkpoint
from ttreg_hf.publishing.output_check import read_expected_outputs

NEURONS = [[1, 5], [0, 3], [2, 7]]
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
    "model_type": "llama",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 40,
    "max_position_embeddings": 128,
}
NECK = {
    "neck_hidden_sizes": [8, 8, 8],
    "fusion_hidden_size": 8,
    "reassemble_hidden_size": 16,
    "reassemble_factors": [2, 1, 0.5],
    "patch_size": 4,
}
CHILD = """
import sys
sys.modules["ttreg_hf"] = None  # as if it were not installed
import torch
import transformers

for saved in sys.argv[1:]:
    folder, name = saved.split("=")
    model = getattr(transformers, name).from_pretrained(folder, trust_remote_code=True)
    with torch.no_grad():
        output = model(**torch.load(folder + "/inputs.pt"))
    torch.save(output[0], folder + "/outputs.pt")
"""


def _llava(tower="clip_vision_model", **fields):
    fields = {"vision_feature_select_strategy": "full" if "siglip" in tower else "default", **fields}
    vision = {"model_type": tower, **TOWER}
    return LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=TEXT, image_token_index=IMAGE_TOKEN, **fields)
    )


def _llava_next():
    vision = {"model_type": "clip_vision_model", **TOWER}
    grids = [[16, 32], [32, 16], [32, 32]]
    fields = {"image_token_index": IMAGE_TOKEN, "image_grid_pinpoints": grids}
    return LlavaNextForConditionalGeneration(LlavaNextConfig(vision_config=vision, text_config=TEXT, **fields))


def _backbone():
    stages = ["stage1", "stage2", "stage3"]
    return Dinov2Config(out_features=stages, reshape_hidden_states=False, **TOWER)


def _depth_anything():
    return DepthAnythingForDepthEstimation(
        DepthAnythingConfig(backbone_config=_backbone(), head_hidden_size=4, **NECK)
    )


def _dpt():
    return DPTForDepthEstimation(DPTConfig(backbone_config=_backbone(), hidden_size=16, **NECK))


MODELS = {
    "llava": _llava,
    "llava-siglip": lambda: _llava("siglip_vision_model"),
    "llava-two-layers": lambda: _llava(vision_feature_layer=[-2, -1]),
    "llava_next": _llava_next,
    "depth_anything": _depth_anything,
    "dpt": _dpt,
}


def _stock(name):
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = MODELS[name]().eval()
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.fixture(params=MODELS)
def stock(request):
    return _stock(request.param)


def _inputs(model, count=2):
    if not hasattr(model.config, "text_config"):
        return {"pixel_values": images(count)}
    if isinstance(model, LlavaNextForConditionalGeneration):  # the whole image, one crop, and a line break per row
        pixels = torch.stack([images(3, seed=seed) for seed in range(count)])
        ids = torch.tensor([[1, *[IMAGE_TOKEN] * (16 + 8 * 4 + 8), 2]] * count)
        return {"input_ids": ids, "pixel_values": pixels, "image_sizes": torch.tensor([[32, 16]] * count)}
    return {"input_ids": torch.tensor([[1, *[IMAGE_TOKEN] * 16, 2]] * count), "pixel_values": images(count)}


@torch.no_grad()
def _output(model, given=None):
    return model(**(given or _inputs(model)))[0]


def _tower(model):
    return model.backbone if hasattr(model, "backbone") else model.model.vision_tower


def _read(model, pixels):
    """What projector or neck reads of the tower."""
    output = model(pixels, output_hidden_states=True)
    return [*output.feature_maps] if "feature_maps" in output else [*output.hidden_states]


def test_the_tower_inside_gives_what_the_tower_patched_alone_gives(stock):
    patched = add_test_time_registers(stock, NEURONS)
    bare = add_test_time_registers(_tower(stock), NEURONS)
    with torch.no_grad():
        inside, alone = _read(_tower(patched), images()), _read(bare, images())
        before = _read(_tower(stock), images())
    assert [state.shape for state in inside] == [state.shape for state in before]
    torch.testing.assert_close(inside, alone)
    assert not torch.allclose(inside[-1], before[-1], atol=1e-3)


def _shapes_read(model):
    """Of what projector or neck reads: a tensor, or one for each feature map."""
    reader = model.neck if hasattr(model, "neck") else model.model.multi_modal_projector
    with reading(reader) as read:
        _output(model)
    return [state.shape for state in (read[0] if isinstance(read[0], (list, tuple)) else read)]


def test_projector_or_neck_reads_as_many_tokens_as_before(stock):
    for registers in (1, 3):
        patched = add_test_time_registers(stock, NEURONS, num_test_time_registers=registers)
        assert _shapes_read(patched) == _shapes_read(stock)


def test_outputs_keep_their_shape_and_change(stock):
    patched = add_test_time_registers(stock, NEURONS)
    after, before = _output(patched), _output(stock)
    assert after.shape == before.shape
    assert not torch.allclose(after, before, atol=1e-4)


def test_a_batch_equals_its_images(stock):
    patched = add_test_time_registers(stock, NEURONS)
    given = _inputs(stock)
    singles = [_output(patched, {name: value[i : i + 1] for name, value in given.items()}) for i in range(2)]
    torch.testing.assert_close(_output(patched, given), torch.cat(singles), rtol=1e-3, atol=1e-4)


def test_switched_off_it_is_the_stock_model_bit_for_bit(stock):
    expected = _output(stock)
    for patched in (
        add_test_time_registers(stock, []),
        add_test_time_registers(stock, NEURONS, num_test_time_registers=0),
    ):
        assert torch.equal(_output(patched), expected)
    with add_test_time_registers(stock, NEURONS).disable_test_time_registers() as patched:
        assert torch.equal(_output(patched), expected)


def test_weights_are_shared_and_keys_are_the_stock_models(stock):
    before = {name: tensor.clone() for name, tensor in stock.state_dict().items()}
    patched = add_test_time_registers(stock, NEURONS)
    _output(patched)
    found = patched.state_dict()
    assert list(found) == list(before)
    assert all(torch.equal(found[name], tensor) for name, tensor in before.items())
    own = dict(patched.named_parameters())
    assert all(own[name] is parameter for name, parameter in stock.named_parameters())


def test_other_neurons_replace_those_of_a_patched_model(stock):
    again = add_test_time_registers(add_test_time_registers(stock, NEURONS), NEURONS[:1], num_test_time_registers=2)
    fresh = add_test_time_registers(stock, NEURONS[:1], num_test_time_registers=2)
    assert torch.equal(_output(again), _output(fresh))


def test_the_stock_class_reads_a_patched_checkpoint_with_the_base_models_config(stock, tmp_path):
    """With the folder's own config LLaVA misses `lm_head`: transformers finds its new name by the config's type."""
    add_test_time_registers(stock, NEURONS).save_pretrained(tmp_path)
    loaded, info = type(stock).from_pretrained(tmp_path, config=stock.config, output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(_output(loaded), _output(stock))


def test_a_checkpoint_with_the_towers_old_names_loads_in_full(stock, tmp_path):
    patched = add_test_time_registers(stock, NEURONS)
    patched.save_pretrained(tmp_path)
    old = {}
    for name, tensor in load_file(tmp_path / "model.safetensors").items():
        for pattern, replacement in [(r"^vision_tower\.", "vision_tower.vision_model."), *OLD_DINOV2]:
            is_of_tower = name.startswith(("vision_tower.", "backbone."))
            name = re.sub(pattern, replacement, name) if is_of_tower else name
        old[name] = tensor
    save_file(old, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded, info = type(patched).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(_output(loaded), _output(patched))


@pytest.fixture(scope="module")
def at_a_strangers(tmp_path_factory):
    """Each model patched, saved, and loaded by one interpreter that has no `ttreg_hf`: folder, outputs here."""
    root = tmp_path_factory.mktemp("strangers")
    found, arguments = {}, []
    for name in MODELS:
        patched, folder = add_test_time_registers(_stock(name), NEURONS), root / name
        patched.save_pretrained(folder)
        torch.save(_inputs(patched), folder / "inputs.pt")
        arguments.append(f"{folder}={type(patched)._auto_class}")
        found[name] = folder, _output(patched)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HOME": str(root / "home"), "HF_HUB_OFFLINE": "1"}
    child = subprocess.run(
        [sys.executable, "-c", CHILD, *arguments],
        capture_output=True,
        text=True,
        env=environment,
        cwd=root,
        timeout=240,
    )
    assert child.returncode == 0, child.stderr
    return found


@pytest.mark.parametrize("name", MODELS)
def test_saved_it_loads_here_and_at_a_strangers(at_a_strangers, name):
    folder, expected = at_a_strangers[name]
    torch.testing.assert_close(_output(load_model(str(folder), device="cpu")), expected)
    torch.testing.assert_close(torch.load(folder / "outputs.pt"), expected)


@pytest.mark.parametrize("name", MODELS)
def test_the_tower_inside_stays_a_stock_one(at_a_strangers, name):
    folder, _ = at_a_strangers[name]
    saved = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tower = saved.get("vision_config") or saved["backbone_config"]
    assert tower["model_type"] == _tower(_stock(name)).config.model_type
    assert "register_neurons" not in tower
    assert len(list(folder.glob("*.py"))) == 3


def test_measuring_runs_the_tower_alone(stock):
    patched = add_test_time_registers(stock, NEURONS)
    for model in (stock, patched):
        with Recorder(VisionTower.of(model), [1]) as recorder:
            recording = recorder(images(2))
        assert recording.norms_LBT.shape == (3, 2, recording.acts_by_layer[1].shape[1])
        assert image_maps(model, images(2), detection_layer=-1)[0].patch_norms.shape == (4, 4)


def test_generate_takes_the_registers_and_without_them_is_the_stock_models():
    torch.manual_seed(0)
    stock = _llava().eval()
    given = {**_inputs(stock), "max_new_tokens": 3, "do_sample": False}
    expected = stock.generate(**given)
    assert torch.equal(add_test_time_registers(stock, [], num_test_time_registers=0).generate(**given), expected)
    assert add_test_time_registers(stock, NEURONS).generate(**given).shape[0] == 2


def test_a_tower_that_cannot_be_patched_is_named():
    with torch.device("meta"):
        dpt = DPTForDepthEstimation(DPTConfig(num_hidden_layers=12))
    with pytest.raises(
        ValueError, match=r"cannot be given test-time registers: it holds no vision tower of a known family"
    ):
        add_test_time_registers(dpt, NEURONS)


def test_registers_do_not_go_into_the_projector():
    with pytest.raises(ValueError, match="`output_registers` is False for this model"):
        add_test_time_registers(_llava(), NEURONS, output_registers=True)


@pytest.mark.parametrize("make", [_dpt, _depth_anything])
def test_registers_in_hidden_states_do_not_go_into_the_neck(make):
    stock = make().eval()
    given = {**_inputs(stock), "output_hidden_states": True}
    with torch.no_grad():
        plain, kept = (
            add_test_time_registers(stock, NEURONS, output_registers=each)(**given) for each in (False, True)
        )
    assert torch.equal(plain.predicted_depth, kept.predicted_depth)
    assert {state.shape[1] for state in plain.hidden_states} == {17}
    assert {state.shape[1] for state in kept.hidden_states} == {18}


def test_a_checkpoint_with_recorded_outputs_is_made_of_models_without_a_prompt(tmp_path):
    torch.manual_seed(0)
    folder = save_checkpoint(add_test_time_registers(_dpt().eval(), NEURONS), tmp_path / "dpt")
    assert set(read_expected_outputs(folder)["outputs"]) == {"predicted_depth"}
    with pytest.raises(ValueError, match="need no prompt, got LlavaTTRegForConditionalGeneration"):
        save_checkpoint(add_test_time_registers(_llava().eval(), NEURONS), tmp_path / "llava")
    assert not (tmp_path / "llava").exists()
