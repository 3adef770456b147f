"""The roads of docs/other-tools.md: every Python block runs, on tiny random models, where its package is installed.

`nox -s roads` installs the packages.
"""

import asyncio
import importlib
import importlib.metadata
import json
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from docs.pages import ROOT, blocks
from families import NEURONS
from local_hub import LocalHub
from outer_models import OUTER_MODELS
from PIL import Image
from transformers import (
    AutoModel,
    BitImageProcessorPil,
    CLIPImageProcessorPil,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2Model,
)

from ttreg_hf import add_test_time_registers

SIDE, PATCH = 56, 14
LLAVA_SIDE = 16
DRIVER = "dynamo.vllm.multimodal_utils.custom_encoder"
# by what they say of not being run with the others: the package that they need, or `None`
TEXTS = {block.reason: block.text for block in blocks(ROOT / "docs" / "other-tools.md", "python")}
# what other packages deprecate is theirs
pytestmark = pytest.mark.filterwarnings("default")

PUBLISH = """
import torch
from transformers import AutoModel
from ttreg_hf import add_test_time_registers

patched = add_test_time_registers(AutoModel.from_pretrained("dinov2-base-timm"), [[0, 3], [1, 5]])
patched.push_to_hub("org/from-timm")
with torch.no_grad():
    torch.save(patched(torch.ones(1, 3, 56, 56)).last_hidden_state, "expected.pt")
"""
LOAD = """
import sys
sys.modules["ttreg_hf"] = None
import torch
from transformers import AutoImageProcessor, AutoModel

model = AutoModel.from_pretrained("org/from-timm", trust_remote_code=True)
AutoImageProcessor.from_pretrained("org/from-timm", backend="pil")
with torch.no_grad():
    torch.testing.assert_close(model(torch.ones(1, 3, 56, 56)).last_hidden_state, torch.load("expected.pt"))
"""


def _road(package):
    """The page's block for a package; its test is skipped where that is missing."""
    pytest.importorskip(package, reason=f"{package} is not installed: `nox -s roads` installs it")
    return TEXTS[f"it needs {package}; tests/test_other_tools.py runs it"]


def _run(text):
    """The block's names, once it has run."""
    Path("block.py").write_text(text, encoding="utf-8")  # nnsight reads it again
    names = {"__name__": "block"}
    exec(compile(text, "block.py", "exec"), names)
    return types.SimpleNamespace(**names)


def _random(model):
    """With weights that all matter: a LayerScale of 1e-5 hides what comes before it."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model.eval()


def _photo(side, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8))


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def reader(here):
    """Where the page's reader is: a patched checkpoint, and a photograph that needs no resizing."""
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=2, image_size=SIDE, patch_size=PATCH
    )
    patched = add_test_time_registers(_random(Dinov2Model(config)), NEURONS)
    patched.save_pretrained("dinov2-base-ttreg")
    size = {"height": SIDE, "width": SIDE}
    BitImageProcessorPil(size=size, do_center_crop=False).save_pretrained("dinov2-base-ttreg")
    photo = _photo(SIDE)
    photo.save("my.png")
    Path("my.png").rename("my.jpg")  # without loss: Pillow looks at what a file holds, not at its name
    pixels = BitImageProcessorPil(do_resize=False, do_center_crop=False)(photo, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        return types.SimpleNamespace(patched=patched, outputs=patched(pixels))


@pytest.fixture
def from_timm(here, monkeypatch):
    """What the block makes of a shallow, random model of the same name."""
    text = _road("timm")
    timm = importlib.import_module("timm")
    create = timm.create_model

    def shallow(name, pretrained):
        assert pretrained
        return _random(create(name.split(".")[0], pretrained=False, depth=2, img_size=SIDE))

    monkeypatch.setattr(timm, "create_model", shallow)
    return _run(TEXTS[None] + text)


def test_every_block_of_the_page_is_of_a_tool_that_is_tried_here():
    tools = ("timm", "open_clip", "sentence_transformers", "fiftyone", "nnsight", "dynamo")
    assert set(TEXTS) == {None, *(f"it needs {tool}; tests/test_other_tools.py runs it" for tool in tools)}


def test_fused_projections_become_three_and_names_are_replaced(here):
    fused = torch.arange(6)
    found = _run(TEXTS[None]).renamed({"a.qkv": fused, "b.x": fused}, {"qkv": "{}_proj", "b.": "c."})
    assert {name: tensor.tolist() for name, tensor in found.items()} == {
        "a.q_proj": [0, 1],
        "a.k_proj": [2, 3],
        "a.v_proj": [4, 5],
        "c.x": [0, 1, 2, 3, 4, 5],
    }


def test_timm_weights_give_timms_features_from_the_folder_too(from_timm):
    pixels = torch.randn(2, 3, SIDE, SIDE)
    loaded = AutoModel.from_pretrained("dinov2-base-timm")
    with torch.no_grad():
        found, expected = loaded(pixels).last_hidden_state, from_timm.source.forward_features(pixels)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_the_processor_of_timm_weights_does_what_timm_does(from_timm):
    timm = importlib.import_module("timm")
    photo = _photo(2 * SIDE).crop((0, 0, 2 * SIDE, 70))
    data = timm.data.resolve_model_data_config(from_timm.source) | {"input_size": (3, SIDE, SIDE)}
    expected = timm.data.create_transform(**data, is_training=False)(photo)
    found = BitImageProcessorPil.from_pretrained("dinov2-base-timm")(photo, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(found, expected)


def test_timm_weights_are_patched_published_and_loaded_by_a_stranger(from_timm, here, local_hub: LocalHub):
    environment = local_hub.environment(here / "cache", token=local_hub.token)
    for source in (PUBLISH, LOAD):
        child = subprocess.run(
            [sys.executable, "-c", source], cwd=here, env=environment, capture_output=True, text=True, timeout=300
        )
        assert child.returncode == 0, child.stderr
    config = json.loads(local_hub.files("org/from-timm")["config.json"])
    assert config["register_neurons"] == [[0, 3], [1, 5]]


def test_a_model_of_timms_own_modules_is_refused():
    pytest.importorskip("timm", reason="timm is not installed: `nox -s roads` installs it")
    transformers = importlib.import_module("transformers")
    config = transformers.TimmWrapperConfig(architecture="vit_tiny_patch16_224", model_args={"depth": 1})
    with pytest.raises(ValueError, match="timm's modules are not transformers'"):
        add_test_time_registers(transformers.TimmWrapperModel(config), [[0, 3]])


@pytest.mark.parametrize("quick", [True, False])
def test_open_clip_weights_give_open_clips_image_embeddings(quick, here, monkeypatch):
    text = _road("open_clip")
    open_clip = importlib.import_module("open_clip")
    vision = {"layers": 2, "width": 64, "head_width": 16, "mlp_ratio": 2.0, "image_size": SIDE, "patch_size": PATCH}
    words = {"context_length": 4, "vocab_size": 8, "width": 16, "heads": 2, "layers": 1}
    source = _random(open_clip.CLIP(embed_dim=24, vision_cfg=vision, text_cfg=words, quick_gelu=quick))
    monkeypatch.setattr(open_clip, "create_model", lambda name, pretrained: source)
    _run(TEXTS[None] + text)
    loaded = CLIPVisionModelWithProjection.from_pretrained("clip-open")
    pixels = torch.randn(2, 3, SIDE, SIDE)
    patched = add_test_time_registers(loaded, [[0, 3]])
    with torch.no_grad(), patched.disable_test_time_registers():
        expected = source.encode_image(pixels)
        torch.testing.assert_close(patched(pixels).image_embeds, expected, rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        assert not torch.allclose(patched(pixels).image_embeds, expected, rtol=1e-3, atol=1e-3)
    assert CLIPImageProcessorPil.from_pretrained("clip-open").crop_size.height == SIDE


def test_sentence_transformers_embeds_images_without_the_register(reader):
    found = _run(_road("sentence_transformers"))
    np.testing.assert_allclose(found.embeddings, reader.outputs.pooler_output, atol=1e-4)
    np.testing.assert_allclose(found.averaged, reader.outputs.last_hidden_state.mean(1), atol=1e-4)


def test_fiftyone_embeds_images_with_the_patched_model(reader):
    found = _run(_road("fiftyone"))
    np.testing.assert_allclose(found.embeddings, reader.outputs.pooler_output, atol=1e-4)


def test_nnsight_sees_neurons_before_and_after_the_shift(reader):
    found = _run(_road("nnsight"))
    num_patches = (SIDE // PATCH) ** 2
    assert [found.layer, found.neuron] == NEURONS[0]
    assert found.before.shape == found.after.shape == (1, 2 + num_patches)
    assert found.hidden.shape == (1, 2 + num_patches, found.model.config.hidden_size)
    tokens = found.before[:, [0, *range(2, 2 + num_patches)]]  # all but the register
    largest = tokens.gather(1, tokens.abs().argmax(1, keepdim=True))
    torch.testing.assert_close(found.after[:, found.layout.registers], largest)
    torch.testing.assert_close(found.after[:, 0], found.before[:, 0])


@pytest.fixture
def dynamo():
    """Dynamo's driver of custom encoders, without what stands around it, which needs vLLM."""
    try:
        files = importlib.metadata.distribution("ai-dynamo")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("ai-dynamo is not installed: `nox -s roads` installs it")
    for name in ("dynamo", "dynamo.vllm", "dynamo.vllm.multimodal_utils", DRIVER):
        sys.modules[name] = types.ModuleType(name)
    package = sys.modules[DRIVER]
    package.__path__ = [str(files.locate_file(DRIVER.replace(".", "/")))]
    driver = importlib.import_module(f"{DRIVER}.async_encoder")
    package.VisionEncoderBackend = driver.VisionEncoderBackend
    yield driver
    for name in [name for name in sys.modules if name.partition(".")[0] == "dynamo"]:
        del sys.modules[name]


def test_dynamos_driver_runs_the_patched_tower_as_its_encoder(dynamo, here):
    patched = add_test_time_registers(_random(OUTER_MODELS["llava"].stock()), NEURONS)
    patched.save_pretrained("llava-ttreg")
    size = {"height": LLAVA_SIDE, "width": LLAVA_SIDE}
    processor = CLIPImageProcessorPil(size=size, crop_size=size)
    processor.save_pretrained("llava-ttreg")
    photos = [_photo(LLAVA_SIDE, seed) for seed in range(3)]
    for place, photo in enumerate(photos):
        photo.save(f"{place}.png")
    found = _run(TEXTS["it needs dynamo; tests/test_other_tools.py runs it"])
    encoder = dynamo.AsyncVisionEncoder(found.PatchedTower())
    encoder.load("the-language-model")
    try:
        found = asyncio.run(encoder.encode([f"{place}.png" for place in range(3)]))
    finally:
        encoder.shutdown()
    pixels = processor(photos, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = patched.get_image_features(pixel_values=pixels).pooler_output
    assert [tokens.shape for tokens in found] == [(16, 16)] * 3
    torch.testing.assert_close(torch.stack(found), torch.stack(list(expected)))
