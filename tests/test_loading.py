"""Loading by path, and what each wrong path is told."""

from pathlib import Path
from typing import Any

import pytest
import torch
from families import TINY_TEXT, images
from transformers import (
    BitImageProcessorPil,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    ResNetConfig,
    ResNetModel,
)

from ttreg_hf.applying import add_test_time_registers
from ttreg_hf.loading import default_device, load_model, load_processor, load_whole_processor
from ttreg_hf.measuring.tower import VisionTower

NEURONS = [[1, 3]]


def _save(model: Any, folder: Path) -> str:
    model.save_pretrained(folder)
    return str(folder)


@torch.no_grad()
def test_a_saved_model_is_loaded_in_eval_mode(bare_case, tmp_path):
    model = bare_case.stock_model()
    loaded = load_model(_save(model, tmp_path), device="cpu")
    assert type(loaded) is bare_case.stock_class
    assert not loaded.training
    torch.testing.assert_close(
        loaded(**VisionTower.of(loaded).inputs(images())).last_hidden_state,
        model(**VisionTower.of(model).inputs(images())).last_hidden_state,
    )


def test_dtype_is_the_checkpoints_or_the_given(bare_case, tmp_path):
    name = _save(bare_case.stock_model().bfloat16(), tmp_path)
    assert load_model(name).dtype == torch.bfloat16
    assert load_model(name, dtype="float32").dtype == load_model(name, dtype=torch.float32).dtype == torch.float32


def test_device_is_the_given_or_the_default(bare_case, tmp_path):
    name = _save(bare_case.stock_model(), tmp_path)
    assert load_model(name).device.type == default_device().type
    assert load_model(name, device=torch.device("cpu")).device.type == "cpu"


@torch.no_grad()
def test_a_patched_model_is_loaded_patched(bare_case, tmp_path):
    patched = add_test_time_registers(bare_case.stock_model(), NEURONS)
    loaded = load_model(_save(patched, tmp_path), device="cpu")
    assert type(loaded) is type(patched)
    inputs = VisionTower.of(patched).inputs(images())
    torch.testing.assert_close(loaded(**inputs).last_hidden_state, patched(**inputs).last_hidden_state)


@torch.no_grad()
def test_a_clip_checkpoint_with_both_towers_is_loaded_whole(tmp_path):
    """As openai/clip-vit-base-patch16 and the LAION checkpoints are stored: model type `clip`."""
    tower = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"vocab_size": 9, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "max_position_embeddings": 4}
    vision = {"image_size": 16, "patch_size": 4}
    both = CLIPModel(CLIPConfig(text_config=tower | text, vision_config=tower | vision)).eval()
    loaded = load_model(_save(both, tmp_path), device="cpu")
    assert type(loaded) is CLIPModel
    seen = VisionTower.of(loaded).trunk(images()).pooler_output
    torch.testing.assert_close(seen, both.vision_model(images()).pooler_output)


def test_an_unsupported_family_is_refused_and_told_where_the_supported_are(tmp_path):
    model = ResNetModel(ResNetConfig(embedding_size=4, hidden_sizes=[4], depths=[1]))
    message = r"type 'resnet', which cannot be given test-time registers: it is convolutional.*docs/families.md lists"
    with pytest.raises(ValueError, match=message):
        load_model(_save(model, tmp_path))


def test_a_folder_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"but {tmp_path} has no config\.json\. Give the folder that"):
        load_model(str(tmp_path))


def test_a_folder_without_weights_is_refused(bare_case, tmp_path):
    bare_case.stock_model().config.save_pretrained(tmp_path)
    with pytest.raises(OSError, match=r"model\.safetensors"):
        load_model(str(tmp_path))


def test_a_name_that_is_nowhere_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError, match="no-such-model"):
        load_model("./no-such-model")


def test_a_processor_is_loaded_or_none(tmp_path):
    assert load_processor(str(tmp_path)) is None
    BitImageProcessorPil(size={"shortest_edge": 17}).save_pretrained(tmp_path)
    assert load_processor(str(tmp_path)).size["shortest_edge"] == 17


def test_the_tokenizer_comes_along_where_a_model_reads_text(tmp_path):
    clip = CLIPModel(CLIPConfig(text_config=TINY_TEXT, vision_config={"num_hidden_layers": 1, "hidden_size": 24}))
    clip.config.save_pretrained(tmp_path)
    CLIPImageProcessorPil().save_pretrained(tmp_path)
    assert isinstance(load_whole_processor(clip, str(tmp_path)), CLIPImageProcessorPil)
    tokenizer = CLIPTokenizer(vocab={"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2}, merges=[])
    CLIPProcessor(CLIPImageProcessorPil(), tokenizer).save_pretrained(tmp_path)
    assert load_whole_processor(clip, str(tmp_path)).tokenizer("a")["input_ids"] == [0, 2, 1]
    assert isinstance(load_whole_processor(clip.vision_model, str(tmp_path)), CLIPImageProcessorPil)
