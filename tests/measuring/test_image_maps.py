"""Maps of planted models: what they show is known, and measuring leaves no trace."""

from functools import cache

import pytest
import torch
from torch import Tensor
from transformers import Dinov2Backbone, Dinov2ForImageClassification, PreTrainedModel

from ttreg_hf.applying import add_test_time_registers
from ttreg_hf.measuring.image_maps import ImageMaps, _given_attention, image_maps, neuron_maps
from ttreg_hf.measuring.tower import VisionTower
from ttreg_hf.modeling.registers import TokenLayout
from ttreg_hf.planted import PlantedModel, planted_model

FAMILIES = ("dinov2", "clip_vision_model")
GRID = 8  # patches a side


@cache
def planted(family: str) -> PlantedModel:
    return planted_model(family, trigger="low_information")


@cache
def patched(family: str) -> PreTrainedModel:
    return add_test_time_registers(planted(family).model, planted(family).register_neurons)


def images(family: str) -> Tensor:
    return planted(family).sample[:3]


def stacked(maps: list[ImageMaps], name: str) -> Tensor:
    return torch.stack([getattr(image, name) for image in maps])


@pytest.fixture(params=FAMILIES)
def family(request) -> str:
    return request.param


@pytest.mark.parametrize("layer", [0, 3, 5, -1, -2])
@pytest.mark.parametrize("variant", ["stock", "patched"])
def test_patch_norms_are_those_of_the_hidden_states(family, variant, layer):
    model = planted(family).model if variant == "stock" else patched(family)
    maps = image_maps(model, images(family), detection_layer=layer)
    with torch.no_grad():
        states = model(images(family), output_hidden_states=True).hidden_states[1:]
    expected = states[layer][:, 1:].norm(dim=-1).unflatten(1, (GRID, GRID))
    torch.testing.assert_close(stacked(maps, "patch_norms"), expected, rtol=1e-4, atol=1e-5)


def test_patch_norms_keep_rows_and_columns_apart_for_wide_images():
    model = planted("dinov2").model
    wide = torch.cat([images("dinov2"), images("dinov2")], dim=-1)
    maps = image_maps(model, wide, detection_layer=0)
    with torch.no_grad():
        expected = model(wide, output_hidden_states=True).hidden_states[1][:, 1:].norm(dim=-1)
    torch.testing.assert_close(stacked(maps, "patch_norms"), expected.unflatten(1, (GRID, 2 * GRID)))
    assert maps[0].features.shape == (GRID, 2 * GRID, 64)


@pytest.mark.parametrize("num_registers", [0, 1, 2])
def test_attention_shares_are_the_cls_row_of_eager_attention(family, num_registers):
    model = add_test_time_registers(
        planted(family).model,
        planted(family).register_neurons,
        num_test_time_registers=num_registers,
        output_registers=True,
    )
    maps = image_maps(model, images(family), detection_layer=-1)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        row = model(images(family), output_attentions=True).attentions[-1].mean(dim=1)[:, 0]
    patches = stacked(maps, "attention").flatten(1)
    torch.testing.assert_close(patches, row[:, 1 + num_registers :])
    shares = torch.tensor([image.register_attention or 0.0 for image in maps])
    torch.testing.assert_close(shares, row[:, 1 : 1 + num_registers].sum(dim=1))
    torch.testing.assert_close(patches.sum(dim=1) + shares + row[:, 0], torch.ones(3))  # the rest is CLS itself
    assert maps[0].has_cls


def test_register_attention_is_none_where_there_is_no_register(family):
    model = patched(family)
    with model.disable_test_time_registers():
        disabled = image_maps(model, images(family), detection_layer=-1)
    stock = image_maps(planted(family).model, images(family), detection_layer=-1)
    assert [image.register_attention for image in disabled + stock] == [None] * 6
    for ours, theirs in zip(disabled, stock, strict=True):
        assert torch.equal(ours.patch_norms, theirs.patch_norms)
        assert torch.equal(ours.attention, theirs.attention)
        assert torch.equal(ours.features, theirs.features)


def test_attention_without_cls_is_what_patches_receive_from_patches():
    layout = TokenLayout(num_prefix_tokens=0, num_test_time_registers=1, patch_size=(1, 1))
    attention = torch.tensor([[0.9, 0.1, 0.0], [0.2, 0.3, 0.5], [0.4, 0.6, 0.0]]).expand(2, 3, 3)
    torch.testing.assert_close(_given_attention(attention, layout), torch.tensor([[0.3, 0.45, 0.25]] * 2))


def test_outlier_patches_take_the_attention_before_and_the_register_takes_it_after(family):
    threshold = planted(family).norm_threshold
    before = image_maps(planted(family).model, images(family), detection_layer=-2)
    after = image_maps(patched(family), images(family), detection_layer=-2)
    for stock, fixed in zip(before, after, strict=True):
        outliers = stock.patch_norms > threshold
        assert 0 < outliers.sum() <= 6
        assert stock.attention[outliers].min() > 20 * stock.attention[~outliers].median()
        assert fixed.patch_norms.max() < threshold
        assert fixed.attention[outliers].sum() < 0.2 * stock.attention[outliers].sum()
        assert fixed.register_attention > 0.2


def test_features_are_the_patches_of_the_last_hidden_state(family):
    for model in (planted(family).model, patched(family)):
        maps = image_maps(model, images(family), detection_layer=-1)
        with torch.no_grad():
            expected = model(images(family)).last_hidden_state[:, 1:].unflatten(1, (GRID, GRID))
        torch.testing.assert_close(stacked(maps, "features"), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("swiglu", [False, True])
def test_neuron_activation_is_the_base_models_before_and_after(swiglu):
    plant = planted_model("dinov2", trigger="low_information", use_swiglu_ffn=swiglu)
    model = add_test_time_registers(plant.model, plant.register_neurons)
    strongest = plant.register_neurons[0]
    neuron = (strongest.layer, strongest.neuron)
    before = neuron_maps(plant.model, plant.sample[:3], neuron)
    assert torch.equal(before, neuron_maps(model, plant.sample[:3], neuron))
    maps = image_maps(plant.model, plant.sample[:3], detection_layer=-2)
    for activation, patch_norms in zip(before, stacked(maps, "patch_norms"), strict=True):
        outliers = patch_norms > plant.norm_threshold
        assert outliers.any()
        assert activation[outliers].min() > activation[~outliers].max()


@pytest.mark.parametrize("output_registers", [False, True])
def test_a_head_model_has_the_maps_of_its_trunk(output_registers):
    plant = planted("dinov2")
    with_head = Dinov2ForImageClassification(plant.model.config).eval()
    with_head.dinov2.load_state_dict(plant.model.state_dict())
    head = add_test_time_registers(with_head, plant.register_neurons, output_registers=output_registers)
    bare, pixel_values = patched("dinov2"), plant.sample[:2]
    expected = image_maps(bare, pixel_values, detection_layer=-2)
    for ours, theirs in zip(image_maps(head, pixel_values, detection_layer=-2), expected, strict=True):
        assert ours.register_attention == theirs.register_attention
        for name in ("patch_norms", "attention", "features"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    assert torch.equal(neuron_maps(head, pixel_values, (2, 0)), neuron_maps(bare, pixel_values, (2, 0)))


@pytest.mark.parametrize("reshaped", [True, False])
def test_a_backbone_shows_its_last_feature_map(reshaped):
    plant = planted("dinov2")
    stock = Dinov2Backbone(plant.model.config).eval()
    stock.load_state_dict(plant.model.state_dict())
    stock.config.reshape_hidden_states = reshaped
    backbone = add_test_time_registers(stock, plant.register_neurons)
    for ours, theirs in zip(
        image_maps(backbone, plant.sample[:2], detection_layer=-2),
        image_maps(patched("dinov2"), plant.sample[:2], detection_layer=-2),
        strict=True,
    ):
        torch.testing.assert_close(ours.features, theirs.features)
        torch.testing.assert_close(ours.patch_norms, theirs.patch_norms)


def settings(model: PreTrainedModel) -> tuple:
    hooks = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())
    config = VisionTower.of(model).trunk.config
    return config._attn_implementation, getattr(config, "output_registers", None), model.training, hooks


def test_settings_are_as_before_also_after_an_error(family):
    bare = add_test_time_registers(planted(family).model, planted(family).register_neurons, output_registers=True)
    for model in (bare, planted(family).model):
        before = settings(model)
        assert before[0] == "sdpa"
        image_maps(model, images(family), detection_layer=-1)
        neuron_maps(model, images(family), (1, 2))
        assert settings(model) == before
        with pytest.raises((RuntimeError, ValueError)):  # the patch embedding refuses it
            image_maps(model, torch.zeros(1, 7, 112, 112), detection_layer=-1)
        with pytest.raises((RuntimeError, ValueError)):
            neuron_maps(model, torch.zeros(1, 7, 112, 112), (1, 2))
        assert settings(model) == before
    assert bare.registers.active


def test_maps_of_a_bfloat16_model_are_float32():
    plant = planted_model("dinov2")
    maps = image_maps(plant.model.to(torch.bfloat16), plant.sample[:1], detection_layer=-2)
    assert {maps[0].patch_norms.dtype, maps[0].attention.dtype, maps[0].features.dtype} == {torch.float32}


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (6, r"`detection_layer` is a layer from -6 to 5 \(this model has 6 blocks\), got 6"),
        (-7, r"`detection_layer` is a layer from -6 to 5 \(this model has 6 blocks\), got -7"),
    ],
)
def test_a_layer_that_the_model_does_not_have_is_an_error(layer, message):
    with pytest.raises(ValueError, match=message):
        image_maps(planted("dinov2").model, images("dinov2"), detection_layer=layer)


@pytest.mark.parametrize(
    ("neuron", "message"),
    [
        ((6, 0), r"`neuron` names layer 6, but this model has 6 layers \(0 to 5\)"),
        ((-1, 0), r"`neuron` names layer -1, but"),
        ((2, 256), r"`neuron` names neuron 256, but layer 2 has 256 neurons \(0 to 255\)"),
    ],
)
def test_a_neuron_that_the_model_does_not_have_is_an_error(neuron, message):
    with pytest.raises(ValueError, match=message):
        neuron_maps(planted("dinov2").model, images("dinov2"), neuron)


def test_one_image_without_batch_is_an_error():
    with pytest.raises(ValueError, match=r"`pixel_values` is a batch .* got shape \(3, 112, 112\)"):
        image_maps(planted("dinov2").model, images("dinov2")[0], detection_layer=-1)
