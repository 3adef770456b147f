"""`visualize` and `compute_maps`: any supported model, with or without a patched form; what the arrays hold."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from outer_models import OUTER_MODELS
from transformers import BitImageProcessorPil, CLIPConfig, CLIPModel, SiglipVisionConfig, SiglipVisionModel

import ttreg_hf
from ttreg_hf.images.photographs import load_photographs, photograph_paths
from ttreg_hf.measuring.image_maps import image_maps, rolled_out
from ttreg_hf.pictures import visualization
from ttreg_hf.planted import PlantedModel, planted_model

TINY = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 40}
SIZED = {**TINY, "image_size": 32, "patch_size": 4}


@cache
def planted() -> PlantedModel:
    return planted_model("dinov2", trigger="low_information")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A checkpoint with its image processor."""
    size = planted().sample.shape[-1]
    planted().model.save_pretrained(tmp_path / "base")
    crop = {"height": size, "width": size}
    processor = BitImageProcessorPil(size={"shortest_edge": size}, crop_size=crop, do_center_crop=True)
    processor.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def rows_of(figure: Figure) -> int:
    """How many photographs it shows."""
    return sum(axes.get_ylabel() in ("before", "after") for axes in figure.axes) or 1


def test_a_model_without_a_patched_form_is_drawn_in_one_row():
    figure = ttreg_hf.visualize(planted().model, planted().sample[0])
    assert isinstance(figure, Figure)
    assert rows_of(figure) == 1
    assert {"Photo", "Patch norms", "CLS attention, last block", "PCA of features"} <= {
        axes.get_title() for axes in figure.axes
    }


def test_neurons_or_a_patched_model_give_before_and_after():
    neurons = planted().register_neurons
    patched = ttreg_hf.add_test_time_registers(planted().model, neurons)
    for figure in (
        ttreg_hf.visualize(planted().model, planted().sample[0], neurons),
        ttreg_hf.visualize(patched, planted().sample[0]),
    ):
        assert rows_of(figure) == 2
        before, after = (axes.images[0].get_array() for axes in figure.axes if axes.images and _is_norms(axes))
        assert before.max() > 2 * after.max()


def _is_norms(axes) -> bool:
    return axes.images[0].get_cmap().name == "magma" and axes.get_xlabel().startswith("largest")


def test_a_calibration_brings_its_block_and_threshold(monkeypatch):
    seen = {}

    def draw_image(base, patched, image, processor, **options):
        seen.update(options, count=len(patched.config.register_neurons))
        return Figure()

    monkeypatch.setattr(visualization, "draw_image", draw_image)
    config = ttreg_hf.CalibrationConfig(num_images=12, top_k=2, norm_threshold=planted().norm_threshold)
    result = ttreg_hf.calibrate(planted().model, planted().sample, config=config)
    ttreg_hf.visualize(planted().model, planted().sample[0], result)
    assert seen["detection_layer"] == result.norms.detection_layer
    assert (seen["norm_threshold"], seen["count"]) == (result.norms.norm_threshold, 2)
    ttreg_hf.visualize(planted().model, planted().sample[0], result, detection_layer=0, norm_threshold=7.0)
    assert (seen["detection_layer"], seen["norm_threshold"]) == (0, 7.0)
    assert isinstance(result.plot(), Figure)


def test_published_settings_are_those_of_the_base_model(tmp_path):
    stock = planted().model
    patched = ttreg_hf.add_test_time_registers(stock, planted().register_neurons)
    patched.config.base_model_name_or_path = "facebook/dinov2-large"
    patched.save_pretrained(tmp_path)
    loaded = ttreg_hf.from_pretrained(tmp_path)
    assert visualization.detection_of(loaded, None)[1] == visualization.detection_of(patched, None)[1] == 150
    assert visualization.detection_of(stock, None)[1] is None


@pytest.mark.parametrize("kind", ["path", "text", "pil", "array"])
def test_a_checkpoint_may_be_named_and_an_image_be_anything(saved, kind):
    path, photograph = photograph_paths()[0], load_photographs()[0]
    image = {"path": path, "text": str(path), "pil": photograph, "array": np.asarray(photograph)}[kind]
    assert isinstance(ttreg_hf.visualize(saved, image), Figure)
    maps = ttreg_hf.compute_maps(str(saved), image)
    assert maps.photo.shape == (planted().sample.shape[-1], planted().sample.shape[-1], 3)


def test_a_model_without_a_processor_says_what_to_pass():
    with pytest.raises(ValueError, match="Pass `processor=`"):
        ttreg_hf.visualize(planted().model, load_photographs()[0])


@pytest.mark.parametrize("registers", [0, 1, 2])
def test_arrays_are_the_maps_of_the_patches_alone(registers):
    model = ttreg_hf.add_test_time_registers(
        planted().model, planted().register_neurons, num_test_time_registers=registers
    )
    maps = ttreg_hf.compute_maps(model, planted().sample[0], detection_layer=-2)
    (expected,) = image_maps(model, planted().sample[:1], detection_layer=-2)
    for ours, theirs in ((maps.norms, expected.patch_norms), (maps.attention, expected.attention)):
        assert isinstance(ours, np.ndarray)
        np.testing.assert_array_equal(ours, theirs.numpy())
    assert maps.norms.shape == maps.rollout.shape == maps.pca.shape[:2] == maps.features.shape[:2]
    assert maps.pca.shape[2] == 3
    assert 0 <= maps.pca.min() <= maps.pca.max() <= 1
    assert (maps.register_attention is None) == (registers == 0)


def test_rollout_is_the_product_of_attention_and_identity():
    model = ttreg_hf.add_test_time_registers(planted().model, planted().register_neurons, output_registers=True)
    maps = ttreg_hf.compute_maps(model, planted().sample[0])
    model.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = model(planted().sample[:1], output_attentions=True).attentions
    rolled = torch.eye(attentions[0].shape[-1])
    for attention in attentions:
        rolled = (0.5 * attention[0].mean(0) + 0.5 * torch.eye(len(rolled))) @ rolled
    np.testing.assert_allclose(maps.rollout.flatten(), rolled[0, 2:].numpy(), rtol=1e-4, atol=1e-6)


def test_rows_of_a_rollout_sum_to_one_and_no_attention_rolls_out_to_itself():
    attentions = [torch.rand(2, 5, 5).softmax(-1) for _ in range(3)]
    torch.testing.assert_close(rolled_out(attentions).sum(-1), torch.ones(2, 5))
    identity = torch.eye(5).expand(2, 5, 5)
    torch.testing.assert_close(rolled_out([identity, identity]), identity)


def test_models_without_cls_show_what_patches_receive():
    torch.manual_seed(0)
    maps = ttreg_hf.compute_maps(SiglipVisionModel(SiglipVisionConfig(**SIZED)).eval(), torch.rand(3, 32, 32))
    assert not maps.has_cls
    np.testing.assert_allclose(maps.attention.sum(), 1, rtol=1e-5)
    np.testing.assert_allclose(maps.rollout.sum(), 1, rtol=1e-5)


def test_outer_models_are_drawn_by_their_tower():
    torch.manual_seed(0)
    text = {**TINY, "vocab_size": 40, "max_position_embeddings": 16, "eos_token_id": 2}
    outer = CLIPModel(CLIPConfig(vision_config=SIZED, text_config=text, projection_dim=8)).eval()
    image = torch.rand(3, 32, 32)
    maps, of_tower = (ttreg_hf.compute_maps(model, image) for model in (outer, outer.vision_model))
    np.testing.assert_allclose(maps.norms, of_tower.norms, rtol=1e-5)
    assert maps.rollout.shape == (8, 8)
    assert rows_of(ttreg_hf.visualize(outer, image, [(1, 3)])) == 2


@pytest.mark.parametrize("name", ["llava", "siglip2", "dpt", "owlvit-detection", "idefics2", "encoder_decoder"])
def test_readers_dual_encoders_and_dense_models_have_maps(name):
    maps = ttreg_hf.compute_maps(OUTER_MODELS[name].stock(), torch.rand(3, 16, 16))
    assert maps.norms.shape == maps.attention.shape == maps.rollout.shape == (4, 4)


def test_a_tower_among_several_is_named():
    outer, image = OUTER_MODELS["video_llava"], torch.rand(3, 16, 16)
    model = outer.stock()
    with pytest.raises(ValueError, match="say which with `tower"):
        ttreg_hf.visualize(model, image)
    maps = ttreg_hf.compute_maps(model, image, tower=outer.tower)
    of_tower = ttreg_hf.compute_maps(model.get_submodule(outer.tower), image)
    np.testing.assert_array_equal(maps.norms, of_tower.norms)
    assert rows_of(ttreg_hf.visualize(model, image, tower=outer.tower)) == 1
    assert rows_of(ttreg_hf.visualize(model, image, [(1, 3)], tower=outer.tower)) == 2
    patched = ttreg_hf.add_test_time_registers(model, [(1, 3)], tower=outer.tower)
    assert rows_of(ttreg_hf.visualize(patched, image, tower=outer.tower)) == 2
