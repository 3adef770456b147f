"""Images that keep their proportions (SigLIP 2, NaFlex): its processor pads them, and nothing here depends on that."""

import copy
from typing import Any

import pytest
import torch
from brief import calibrate_briefly
from PIL import Image
from transformers import Siglip2ImageProcessorPil

from ttreg_hf.calibration.calibration_run import inspect_norms
from ttreg_hf.calibration.config import CalibrationConfig
from ttreg_hf.images.batches import ImageBatches
from ttreg_hf.images.pixel_values import to_pixel_values
from ttreg_hf.measuring.image_maps import image_maps, neuron_maps
from ttreg_hf.measuring.recorder import Recorder
from ttreg_hf.measuring.tower import VisionTower
from ttreg_hf.planted import PlantedModel, planted_model, synthetic_images

SIZES = [(112, 112), (112, 70), (56, 112), (84, 98)]  # height and width; a patch has 14 pixels
COUNT = 24


def processor(**settings) -> Siglip2ImageProcessorPil:
    return Siglip2ImageProcessorPil(
        **{"patch_size": 14, "max_num_patches": 64, "image_mean": [0.5] * 3, "image_std": [0.25] * 3, **settings}
    )


@pytest.fixture(scope="module")
def photographs() -> list[Image.Image]:
    arrays = ((synthetic_images(COUNT, seed=99) * 0.25 + 0.5).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1)
    sizes = [SIZES[place % len(SIZES)] for place in range(COUNT)]
    return [
        Image.fromarray(array[:height, :width].contiguous().numpy())
        for array, (height, width) in zip(arrays, sizes, strict=True)
    ]


@pytest.fixture(scope="module")
def planted() -> PlantedModel:
    return planted_model("siglip2_vision_model")


def config(planted: PlantedModel, **fields) -> CalibrationConfig:
    settings = {"norm_threshold": planted.norm_threshold, "last_layer": 3, "top_k": 2}
    return CalibrationConfig(**{"num_images": COUNT, **settings, **fields})


def test_an_image_comes_out_of_the_processor_as_it_went_in_and_goes_into_the_model_as_the_processor_gives_it(planted):
    photo = Image.effect_noise((50, 90), 80).convert("RGB")
    given = processor()(images=photo, return_tensors="pt")
    count = int(given["pixel_attention_mask"].sum())
    assert count < 64
    seen = VisionTower.of(planted.model).inputs(to_pixel_values(photo, processor())[None])
    assert torch.equal(seen["spatial_shapes"], given["spatial_shapes"])
    assert torch.equal(seen["pixel_values"], given["pixel_values"][:, :count])
    assert (seen["pixel_attention_mask"] == 1).all()
    plain = to_pixel_values(Image.new("RGB", (28, 14), (255, 0, 0)), processor(do_resize=False))
    assert torch.equal(plain, torch.tensor([2.0, -2.0, -2.0])[:, None, None].expand(3, 14, 28))


def padded_norms_and_scores(planted, photographs):
    """By the processor's own padded batch and its mask: what `calibrate` should find, one image at a time."""
    given = processor(do_resize=False)(images=photographs, return_tensors="pt")
    acts: dict[int | str, Any] = {}
    for layer, projection in enumerate(VisionTower.of(planted.model).down_projections[:4]):
        keep = lambda module, args, layer=layer: acts.__setitem__(layer, args[0])  # noqa: E731
        acts[f"handle {layer}"] = projection.register_forward_pre_hook(keep)
    with torch.no_grad():
        states = planted.model(**given, output_hidden_states=True).hidden_states
    for layer in range(4):
        acts[f"handle {layer}"].remove()
    scores, counted = torch.zeros(4, acts[0].shape[-1], dtype=torch.float64), 0
    norms = []
    for image, mask in enumerate(given["pixel_attention_mask"].bool()):
        norms.append(states[-1][image, mask].norm(dim=-1))
        outliers = norms[-1] > planted.norm_threshold
        counted += bool(outliers.any())
        for layer in range(4) if outliers.any() else ():
            scores[layer] += acts[layer][image, mask][outliers].double().abs().mean(0)
    return norms, scores / counted


@pytest.mark.parametrize("batch_size", [1, 5, COUNT])
def test_calibrating_finds_what_was_planted_however_images_are_batched(planted, photographs, batch_size):
    result = calibrate_briefly(
        planted.model, photographs, processor=processor(do_resize=False), config=config(planted, batch_size=batch_size)
    )
    norms, scores = padded_norms_and_scores(planted, photographs)
    torch.testing.assert_close(result.scores[:4], scores, rtol=1e-5, atol=1e-6)
    assert result.norms.num_patches == sum(len(norms_N) for norms_N in norms)
    assert result.norms.mean[-1] == pytest.approx(float(torch.cat(norms).mean()), rel=1e-5)
    assert result.norms.max[-1] == pytest.approx(float(torch.cat(norms).max()), rel=1e-5)
    found, truth = ({(each.layer, each.neuron) for each in one.register_neurons} for one in (result, planted))
    assert found == truth
    assert result.verdict == "fixed"
    assert result.provenance.image_size == SIZES[0]
    assert result.provenance.images_scored == COUNT


def test_the_filter_by_active_tokens_does_not_depend_on_the_batch(planted, photographs):
    """Its share is of an image's own tokens."""
    found = [
        calibrate_briefly(
            planted.model,
            photographs,
            processor=processor(do_resize=False),
            config=config(planted, batch_size=batch_size, max_active_fraction=0.1),
        ).scores
        for batch_size in (1, COUNT)
    ]
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)
    assert (found[0] > 0).any()


def test_the_first_images_are_the_same_however_they_are_batched(photographs):
    def first(batch_size: int) -> set[int]:
        batches = ImageBatches(
            photographs, processor(), num_images=COUNT, batch_size=batch_size, device=torch.device("cpu")
        )
        parts = list(batches.first(6))
        assert all(len(batch.pixel_values) == len(batch.places) for batch in parts)
        return {place for batch in parts for place in batch.places}

    assert first(1) == first(4) == first(5) == first(COUNT) == set(range(6))


def test_maps_have_the_images_proportions(planted, photographs):
    """In float64: beside the outliers' norm, float32 rounds ordinary channels visibly."""
    wide = photographs[2]
    neuron = planted.register_neurons[0]
    model = copy.deepcopy(planted.model).double()
    pixel_values = to_pixel_values(wide, processor(do_resize=False))[None].double()
    (maps,) = image_maps(model, pixel_values, detection_layer=3)
    (activation,) = neuron_maps(model, pixel_values, (neuron.layer, neuron.neuron))
    given = processor(do_resize=False)(images=wide, return_tensors="pt")
    with torch.no_grad():
        output = model(**(given | {"pixel_values": given["pixel_values"].double()}), output_hidden_states=True)
    norms_N = output.hidden_states[4][0, :32].norm(dim=-1)
    torch.testing.assert_close(maps.patch_norms.flatten(), norms_N.float(), rtol=1e-5, atol=1e-5)
    expected_ND = output.last_hidden_state[0, :32].float()
    torch.testing.assert_close(maps.features.flatten(0, 1), expected_ND, rtol=1e-5, atol=1e-5)
    assert maps.patch_norms.shape == maps.attention.shape == activation.shape == (4, 8)


def test_images_that_are_no_whole_patches_are_refused(planted):
    with pytest.raises(ValueError, match=r"whole patches of 14 x 14 pixels, got 112 x 100\. Use the checkpoint's own"):
        inspect_norms(planted.model, torch.zeros(1, 3, 112, 100), config=CalibrationConfig(num_images=1))


def test_a_recorded_feature_is_the_pooled_one_of_the_padded_image(planted, photographs):
    given = processor(do_resize=False)(images=photographs[1], return_tensors="pt")
    with Recorder(VisionTower.of(planted.model)) as recorder, torch.no_grad():
        found = recorder(to_pixel_values(photographs[1], processor(do_resize=False))[None]).feature_BD
        torch.testing.assert_close(found, planted.model(**given).pooler_output, rtol=1e-4, atol=1e-5)
