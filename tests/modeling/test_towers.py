"""Models around a vision tower: the tower is patched inside, and what reads it receives what it received before."""

import copy
import functools
import json
import os
import re
from pathlib import Path

import pytest
import torch
import transformers
from families import images
from outer_models import IMAGE_TOKEN, OUTER_MODELS, outer_models_list
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.utils import logging
from warm import run_warm

import ttreg_hf.applying
import ttreg_hf.publishing.checkpoint
from modeling.laws import assert_equal_outputs, flat_tensors
from modeling.test_checkpoints import OLD_DINOV2
from ttreg_hf import add_test_time_registers, inspect_norms
from ttreg_hf.loading import ModelSource, load_model
from ttreg_hf.measuring.image_maps import image_maps
from ttreg_hf.measuring.recorder import Recorder
from ttreg_hf.measuring.tower import VisionTower
from ttreg_hf.modeling import modeling_ttreg
from ttreg_hf.publishing import probe
from ttreg_hf.publishing.checkpoint import make_checkpoint, save_checkpoint
from ttreg_hf.publishing.output_check import check_outputs, largest_difference, read_expected_outputs

NEURONS = [[1, 5], [0, 3], [2, 7]]
WITH_OLD_NAMES = ["llava", "llava-siglip", "llava-two-layers", "llava_next", "depth_anything", "dpt"]
# for what all inherit from one place: a tower that gives tokens, one that gives maps, one of several, one beside text
INHERITING = ["llava", "depth_anything", "video_llava", "dual_encoder"]
SEVERAL = [name for name, outer in OUTER_MODELS.items() if outer.towers]
CHILD = """
import json, runpy, sys
sys.modules["ttreg_hf"] = None  # as if it were not installed
import torch

torch.set_num_threads(1)
probe = runpy.run_path(sys.argv[1])
for folder in sys.argv[2:]:
    model = probe["load_like_a_stranger"](folder)
    with torch.no_grad():
        output = model(**torch.load(folder + "/inputs.pt"))
    tensors = {name: value for name, value in output.items() if isinstance(value, torch.Tensor)}
    torch.save([tensors, probe["outputs_on_probe"](model)], folder + "/outputs.pt")
"""


@functools.cache
def _stock(name):
    return OUTER_MODELS[name].stock()


@functools.cache
def _stock_output(name):
    return _output(_stock(name), OUTER_MODELS[name].inputs(2))


@pytest.fixture(params=OUTER_MODELS)
def name(request):
    return request.param


@functools.cache
def _patched(name):
    return _patched_anew(name)


def _patched_anew(name, neurons=NEURONS, **options):
    return OUTER_MODELS[name].patched(_stock(name), neurons, **options)


def _tower(name, model):
    return model.get_submodule(OUTER_MODELS[name].tower)


@torch.no_grad()
def _output(model, given):
    """Its tensors, by name."""
    return {name: value for name, value in model(**given).items() if isinstance(value, Tensor)}


def _outputs(name, model):
    return _output(model, OUTER_MODELS[name].inputs(2))


def _is_other(found, expected):
    return any(not torch.allclose(found[name], expected[name], rtol=1e-4, atol=1e-4) for name in expected)


def _named(output):
    """All tensors of an output, feature maps and hidden states too."""
    return {key: tensor for key, tensor in flat_tensors(output) if tensor is not None}


def _calls_of_tower(name, model):
    """What the tower is given inside, and what it gives there."""
    calls = []
    keep = lambda module, args, kwargs, output: calls.append((args, kwargs, _named(output)))  # noqa: E731
    with _tower(name, model).register_forward_hook(keep, with_kwargs=True):
        _outputs(name, model)
    return calls


def test_the_tower_inside_gives_what_the_tower_patched_alone_gives(name):
    tower, calls = _tower(name, _stock(name)), _calls_of_tower(name, _stock(name))
    inside = [output for *_, output in _calls_of_tower(name, _patched(name))]
    assert len(inside) == len(calls) > 0
    if not hasattr(transformers, type(tower).__name__):
        with pytest.raises(ValueError, match="its class is not one of transformers'"):
            add_test_time_registers(tower, NEURONS)
        return
    alone = add_test_time_registers(tower, NEURONS)
    for (args, kwargs, before), found in zip(calls, inside, strict=True):
        with torch.no_grad():
            given = _named(alone(*args, **kwargs))
        assert found.keys() == before.keys() <= given.keys()  # some readers choose hidden states themselves
        torch.testing.assert_close(found, {key: given[key] for key in found})
        last = list(found)[-1]
        assert not torch.allclose(found[last], before[last], atol=1e-3)


def test_what_reads_the_tower_reads_as_many_tokens_as_before(name):
    shapes = lambda model: [  # noqa: E731
        [(key, tensor.shape) for key, tensor in output.items()] for *_, output in _calls_of_tower(name, model)
    ]
    assert shapes(_patched_anew(name, num_test_time_registers=3)) == shapes(_stock(name))


def test_outputs_keep_their_shape_and_change(name):
    after, before = _outputs(name, _patched(name)), _stock_output(name)
    assert {key: value.shape for key, value in after.items()} == {key: value.shape for key, value in before.items()}
    assert _is_other(after, before)


def test_a_batch_equals_its_images(name):
    outer, patched = OUTER_MODELS[name], _patched(name)
    given = outer.inputs(2)
    together = next(iter(_output(patched, given).values()))
    whole = {"input_ids", "attention_mask"} if outer.texts_meet_images else set()
    for image in range(2):
        one = {key: value if key in whole else value[image : image + 1] for key, value in given.items()}
        alone = next(iter(_output(patched, one).values()))
        torch.testing.assert_close(
            together[image : image + 1], alone, rtol=1e-3, atol=1e-5 * float(together.abs().max())
        )


def test_switched_off_it_is_the_stock_model_bit_for_bit(name):
    for patched in (_patched_anew(name, []), _patched_anew(name, num_test_time_registers=0)):
        assert_equal_outputs(_outputs(name, patched), _stock_output(name))
    with _patched(name).disable_test_time_registers() as patched:
        assert_equal_outputs(_outputs(name, patched), _stock_output(name))


def test_weights_are_shared_and_keys_are_the_stock_models(name):
    stock = _stock(name)
    before = {key: tensor.clone() for key, tensor in stock.state_dict().items()}
    patched = _patched(name)
    _outputs(name, patched)
    found = patched.state_dict()
    assert list(found) == list(before)
    assert all(torch.equal(found[key], tensor) for key, tensor in before.items())
    own = dict(patched.named_parameters())
    assert all(own[key] is parameter for key, parameter in stock.named_parameters())


@pytest.mark.parametrize("name", INHERITING)
def test_other_neurons_replace_those_of_a_patched_model(name):
    again = add_test_time_registers(_patched(name), NEURONS[:1], num_test_time_registers=2)
    fresh = _patched_anew(name, NEURONS[:1], num_test_time_registers=2)
    assert_equal_outputs(_outputs(name, again), _outputs(name, fresh))


@pytest.mark.parametrize("name", WITH_OLD_NAMES)
def test_a_checkpoint_with_the_towers_old_names_loads_in_full(name, tmp_path):
    patched = _patched(name)
    patched.save_pretrained(tmp_path)
    old = {}
    for key, tensor in load_file(tmp_path / "model.safetensors").items():
        for pattern, replacement in [(r"^vision_tower\.", "vision_tower.vision_model."), *OLD_DINOV2]:
            is_of_tower = key.startswith(("vision_tower.", "backbone."))
            key = re.sub(pattern, replacement, key) if is_of_tower else key
        old[key] = tensor
    save_file(old, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded, info = type(patched).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert_equal_outputs(_outputs(name, loaded), _outputs(name, patched))


@pytest.fixture(scope="module")
def at_a_strangers(tmp_path_factory):
    """Each model patched, saved, and loaded by one process that has no `ttreg_hf`: folder, outputs here."""
    root = tmp_path_factory.mktemp("strangers")
    found = {}
    for name, outer in OUTER_MODELS.items():
        folder = save_checkpoint(_patched(name), root / name)
        torch.save(outer.inputs(2), folder / "inputs.pt")
        found[name] = folder, _outputs(name, _patched(name))
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"HF_HOME": str(root / "home"), "HF_HUB_OFFLINE": "1"}
    folders = [folder for folder, _ in found.values()]
    child = run_warm(CHILD, probe.__file__, *folders, env=environment, cwd=root)
    assert child.returncode == 0, child.stderr
    return found


def test_saved_it_loads_here_and_at_a_strangers(at_a_strangers, name):
    folder, expected = at_a_strangers[name]
    loaded = load_model(str(folder), device="cpu")
    assert loaded.config.tower == (OUTER_MODELS[name].tower if OUTER_MODELS[name].towers else None)
    for found in (_outputs(name, loaded), torch.load(folder / "outputs.pt")[0]):
        assert_equal_outputs(found, expected, exact=False)


def test_a_stranger_finds_the_recorded_outputs_which_are_those_with_registers(at_a_strangers, name):
    """Of the model, or of its tower where a prompt is needed or one of several is chosen."""
    folder, _ = at_a_strangers[name]
    recorded = read_expected_outputs(folder)
    assert largest_difference(recorded, torch.load(folder / "outputs.pt")[1]) < 1e-4
    with _patched(name).disable_test_time_registers() as plain:
        assert largest_difference(recorded, probe.outputs_on_probe(plain)) > 1e-3


def test_outputs_of_the_tower_are_recorded_where_the_model_needs_a_prompt_or_holds_several(name):
    outer, patched = OUTER_MODELS[name], _patched(name)
    given = outer.inputs(1)
    needs_prompt = "decoder_input_ids" in given or IMAGE_TOKEN in given.get("input_ids", [])
    expected = _tower(name, patched) if needs_prompt or outer.towers else patched
    assert probe.probed_part(patched) is expected


def test_the_stock_class_reads_a_patched_checkpoint_with_the_base_models_config(at_a_strangers, name):
    """With the folder's own config LLaVA misses `lm_head`: transformers finds its new name by the config's type."""
    folder, _ = at_a_strangers[name]
    stock = _stock(name)
    loaded, info = type(stock).from_pretrained(folder, config=stock.config, output_loading_info=True)
    assert not any(info.values())
    assert_equal_outputs(loaded.state_dict(), stock.state_dict())
    assert_equal_outputs(_outputs(name, loaded), _stock_output(name), exact=False)  # UperNet's differ by rounding


def _configs_within(fields):
    parts = [part for part in fields.values() if isinstance(part, dict)]
    return [*parts, *(inner for part in parts for inner in _configs_within(part))]


def test_the_tower_inside_stays_a_stock_one(at_a_strangers, name):
    folder, _ = at_a_strangers[name]
    within = _configs_within(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    assert _tower(name, _stock(name)).config.model_type in [part.get("model_type") for part in within]
    assert not any("register_neurons" in part for part in within)
    assert len(list(folder.glob("*.py"))) == 3


def test_measuring_runs_the_tower_alone(name):
    stock, patched = _stock(name), _patched(name)
    for model in (patched,) if name in SEVERAL else (stock, patched):
        with Recorder(VisionTower.of(model), [1]) as recorder:
            recording = recorder(images(2))
        assert recording.norms_LBT.shape == (3, 2, recording.acts_by_layer[1].shape[1])
        assert image_maps(model, images(2), detection_layer=-1)[0].patch_norms.shape == (4, 4)


@pytest.mark.parametrize("name", SEVERAL)
def test_of_several_towers_one_is_chosen(name):
    towers = OUTER_MODELS[name].towers
    with pytest.raises(
        ValueError, match=re.escape(f"it holds several vision towers ({', '.join(towers)}): say which")
    ):
        add_test_time_registers(_stock(name), NEURONS)
    with pytest.raises(ValueError, match=re.escape(f"it holds no vision tower 'lost', but {', '.join(towers)}")):
        add_test_time_registers(_stock(name), NEURONS, tower="lost")
    assert _patched(name).trunk_name == OUTER_MODELS[name].tower


def test_generate_takes_the_registers_and_without_them_is_the_stock_models():
    stock = _stock("llava")
    given = {**OUTER_MODELS["llava"].inputs(2), "max_new_tokens": 3, "do_sample": False}
    expected = stock.generate(**given)
    assert torch.equal(add_test_time_registers(stock, [], num_test_time_registers=0).generate(**given), expected)
    assert add_test_time_registers(stock, NEURONS).generate(**given).shape[0] == 2


def test_a_tower_that_cannot_be_patched_is_named():
    with torch.device("meta"):
        dpt = transformers.DPTForDepthEstimation(transformers.DPTConfig(num_hidden_layers=12))
    with pytest.raises(
        ValueError, match=r"cannot be given test-time registers: it holds no vision tower of a known family"
    ):
        add_test_time_registers(dpt, NEURONS)


def test_registers_do_not_go_into_the_projector():
    with pytest.raises(ValueError, match="`output_registers` is False for this model"):
        _patched_anew("llava", output_registers=True)


@pytest.mark.parametrize("name", ["dpt", "depth_anything"])
def test_registers_in_hidden_states_do_not_go_into_the_neck(name):
    given = {**OUTER_MODELS[name].inputs(2), "output_hidden_states": True}
    with torch.no_grad():
        plain, kept = (_patched_anew(name, output_registers=each)(**given) for each in (False, True))
    assert torch.equal(plain.predicted_depth, kept.predicted_depth)
    assert {state.shape[1] for state in plain.hidden_states} == {17}
    assert {state.shape[1] for state in kept.hidden_states} == {18}


@pytest.mark.parametrize("name", ["llava", "paligemma", "smolvlm"])
def test_recorded_are_the_towers_values(at_a_strangers, name):
    folder, _ = at_a_strangers[name]
    tower = _tower(name, _patched(name))
    found = _output(tower, probe.probe_inputs(tower))
    recorded = read_expected_outputs(folder)
    assert recorded.keys() == found.keys()
    for key, tensor in found.items():
        values_of_images = [set(image.flatten().tolist()) for image in tensor]
        assert all(set(some) <= values for some, values in zip(recorded[key], values_of_images, strict=True))


@pytest.mark.usefixtures("forked_interpreters")
def test_a_checkpoint_of_a_model_that_needs_a_prompt_is_made_and_verified(tmp_path, monkeypatch):
    for module in (ttreg_hf.applying, ttreg_hf.publishing.checkpoint):
        monkeypatch.setattr(module, "published_register_neurons", lambda name: NEURONS)
    _stock("llava").save_pretrained(tmp_path / "base")
    patched = make_checkpoint(ModelSource(str(tmp_path / "base"), device="cpu"), tmp_path / "checkpoint")
    assert_equal_outputs(_outputs("llava", patched), _outputs("llava", _patched("llava")))
    assert check_outputs(tmp_path / "checkpoint") < 1e-4


@pytest.mark.usefixtures("forked_interpreters")
def test_one_of_several_towers_is_measured_and_made_a_checkpoint_of(tmp_path, monkeypatch):
    for module in (ttreg_hf.applying, ttreg_hf.publishing.checkpoint):
        monkeypatch.setattr(module, "published_register_neurons", lambda name: NEURONS)
    outer = OUTER_MODELS["video_llava"]
    _stock("video_llava").save_pretrained(tmp_path / "base")
    with pytest.raises(ValueError, match=r"it holds no vision tower 'lost', but "):
        ModelSource(str(tmp_path / "base"), device="cpu", tower="lost").model()
    source = ModelSource(str(tmp_path / "base"), device="cpu", tower=outer.tower)
    assert len(inspect_norms(source.model(), list(images(4))).mean) == 3  # a block each
    patched = make_checkpoint(source, tmp_path / "checkpoint")
    assert patched.trunk_name == patched.config.tower == outer.tower
    assert check_outputs(tmp_path / "checkpoint") < 1e-4


def test_a_config_that_names_no_tower_of_its_model_is_refused_where_it_is_loaded():
    """By the code that travels, at a stranger's too."""
    patched = _patched("video_llava")
    config = copy.deepcopy(patched.config)
    config.tower = "model.lost_tower"
    with (
        torch.device("meta"),
        pytest.raises(ValueError, match=r"^`tower` names one vision tower of .*, got 'model.lost"),
    ):
        type(patched)(config)


def test_a_patched_model_keeps_its_tower():
    model = OUTER_MODELS["video_llava"]
    patched = model.patched(model.stock(), NEURONS)
    assert add_test_time_registers(patched, NEURONS[:1]).config.tower == model.tower
    with pytest.raises(ValueError, match=r"^A patched model keeps its vision tower, here .* Patch the base model"):
        add_test_time_registers(patched, NEURONS, tower=next(name for name in model.towers if name != model.tower))


@pytest.fixture
def warnings(monkeypatch):
    lines = []
    monkeypatch.setattr(logging.get_logger(modeling_ttreg.__name__), "warning_once", lines.append)
    return lines


def test_a_patched_tower_put_into_a_stock_model_by_hand_is_told_when_that_is_saved(tmp_path, warnings):
    outer = OUTER_MODELS["llava"].stock()
    outer.model.vision_tower = add_test_time_registers(outer.model.vision_tower, NEURONS)
    outer.save_pretrained(tmp_path)
    assert warnings
    assert "is saved without test-time registers; to keep them, patch the whole" in warnings[0]


def test_a_patched_model_saved_as_it_should_be_says_nothing(tmp_path, warnings):
    add_test_time_registers(OUTER_MODELS["llava"].stock(), NEURONS).save_pretrained(tmp_path)
    assert warnings == []


def test_the_page_lists_all_outer_models():
    page = Path(__file__).parents[2] / "docs" / "families.md"
    assert outer_models_list() in page.read_text(encoding="utf-8"), "paste what `outer_models_list()` returns"
