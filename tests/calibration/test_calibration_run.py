"""Calibration from images to verdict, on models whose register neurons are known."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks import planted_kinds
from benchmarks.planted_kinds import make_known_model
from brief import BRIEF, calibrate_briefly
from families import BARE_CASES, ONE_OF_EACH_HEAD, TINY_TEXT, Case, images
from PIL import Image
from torch import Tensor, nn
from transformers import BeitConfig, BeitModel, BitImageProcessorPil, ResNetConfig, ResNetModel

from ttreg_hf.applying import add_test_time_registers
from ttreg_hf.calibration.calibration_result import CalibrationResult
from ttreg_hf.calibration.calibration_run import calibrate, inspect_norms
from ttreg_hf.calibration.config import CalibrationConfig
from ttreg_hf.calibration.search import AUTOMATIC, SCORE, SELECT, VERIFY, Roles
from ttreg_hf.calibration.verdict import MIN_CLEAN, MIN_TO_FIX
from ttreg_hf.images.batches import Batch
from ttreg_hf.images.data_sets import NamedImages
from ttreg_hf.images.data_source import DataSource
from ttreg_hf.measuring.tower import VisionTower
from ttreg_hf.measuring.trunk_weights import weights_checksums
from ttreg_hf.planted import PlantedModel, planted_model, synthetic_images

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "dinov2": ("dinov2", {}),
    "dinov2-swiglu": ("dinov2", {"use_swiglu_ffn": True}),
    "clip": ("clip_vision_model", {}),
}
LAYOUTS = ({2: 2}, {1: 1}, {1: 2, 2: 2, 3: 2}, {3: 2})
# every family with every layout; seeds and triggers take turns, so each meets every family
MATRIX = [
    (family, layout, (turn + place) % 3, ("bright", "low_information")[(turn + place) % 2])
    for (turn, family), (place, layout) in itertools.product(enumerate(FAMILIES), enumerate(LAYOUTS))
]
ENOUGH = MIN_TO_FIX  # photographs for the verdict `fixed`
UNREACHABLE = 1e6  # no norm of a tiny model is above it
DINOV2 = BARE_CASES[0]


def _explicit(planted: PlantedModel, **fields: Any) -> CalibrationConfig:
    settings = {
        "num_images": ENOUGH,
        "batch_size": 12,
        "norm_threshold": planted.norm_threshold,
        "last_layer": 3,
        "top_k": len(planted.register_neurons),
    }
    return CalibrationConfig(**settings | fields)


def _places(neurons: Iterable[Any]) -> list[tuple[int, int]]:
    return [(neuron.layer, neuron.neuron) for neuron in neurons]


@pytest.fixture(scope="module")
def planted() -> PlantedModel:
    return planted_model()


@pytest.fixture(scope="module")
def explicit_result(planted: PlantedModel) -> CalibrationResult:
    return calibrate_briefly(planted.model, synthetic_images(ENOUGH, seed=99), config=_explicit(planted))


@pytest.mark.parametrize(
    ("family", "layout", "seed", "trigger"), MATRIX, ids=lambda value: str(value).replace(" ", "")
)
def test_explicit_settings_find_exactly_the_planted_neurons(family, layout, seed, trigger):
    name, fields = FAMILIES[family]
    planted = planted_model(name, trigger=trigger, neurons_per_layer=layout, seed=seed, **fields)
    result = calibrate_briefly(planted.model, synthetic_images(ENOUGH, seed=100 + seed), config=_explicit(planted))

    truth = set(_places(planted.register_neurons))
    assert set(_places(result.register_neurons)) == truth
    is_planted = torch.zeros_like(result.scores, dtype=torch.bool)
    for layer, neuron in truth:
        is_planted[layer, neuron] = True
    assert result.scores[is_planted].min() > result.scores[~is_planted].max()
    assert result.verdict == "fixed"
    assert max(result.verification.max_norm_after) < planted.norm_threshold < result.verification.register_norm
    assert result.verification.min_feature_similarity > 0.999


@torch.no_grad()
def test_scores_are_the_means_on_outlier_tokens_of_the_detection_block(bare_case):
    """Against a loop over `hidden_states` and captured activations; the threshold makes few patches outliers."""
    model, pixel_values = bare_case.stock_model(), images(5)
    acts_by_layer, states = _acts_and_states(bare_case, model, pixel_values)
    prefix = bare_case.family.num_prefix_tokens
    for detection_layer in range(3):
        norms_BN = states[detection_layer + 1][:, prefix:].norm(dim=-1)
        threshold = float(norms_BN.quantile(0.9))
        expected = torch.zeros(2, acts_by_layer[0].shape[-1], dtype=torch.float64)
        with_outliers = [image for image in range(5) if (norms_BN[image] > threshold).any()]
        for layer, image in itertools.product((0, 1), with_outliers):
            on_outliers = acts_by_layer[layer][image, prefix:][norms_BN[image] > threshold].double().abs()
            expected[layer] += on_outliers.mean(0) / len(with_outliers)
        config = CalibrationConfig(
            batch_size=2, norm_threshold=threshold, detection_layer=detection_layer, last_layer=1, top_k=3
        )
        result = calibrate_briefly(model, pixel_values, config=config)
        torch.testing.assert_close(result.scores[:2], expected, rtol=1e-4, atol=1e-6)
        assert (result.scores[2] == 0).all()
        assert result.provenance.images_with_outliers == len(with_outliers)


def _acts_and_states(case: Case, model: nn.Module, pixel_values: Tensor) -> tuple[list[Tensor], tuple[Tensor, ...]]:
    acts: list[Tensor] = []
    handles = []
    for block in case.blocks_of(model):
        mlp = block.ffn if case.family.name == "aimv2" else block.mlp
        last_linear = [module for module in mlp.modules() if isinstance(module, nn.Linear)]
        down = next(linear for linear in last_linear if linear.out_features == 16)
        handles.append(down.register_forward_pre_hook(lambda module, args: acts.append(args[0])))
    states = model(**VisionTower.of(model).inputs(pixel_values), output_hidden_states=True).hidden_states
    for handle in handles:
        handle.remove()
    return acts, states


def test_result_records_settings_norms_and_provenance(planted, explicit_result):
    assert explicit_result.config == dataclasses.replace(_explicit(planted), detection_layer=4, first_layer=2)
    assert explicit_result.chosen == ("detection_layer", "first_layer")
    assert explicit_result.norms.norm_threshold == planted.norm_threshold
    assert explicit_result.norms.num_images == explicit_result.provenance.num_images == ENOUGH
    assert explicit_result.provenance.images_scored == ENOUGH
    assert explicit_result.provenance.bad_images == ()
    assert (explicit_result.provenance.processes, explicit_result.provenance.dtype) == (1, "float32")
    assert explicit_result.norms.first_outlier_layer == 2
    assert explicit_result.provenance.images_with_outliers == ENOUGH
    assert explicit_result.provenance.weights == weights_checksums(VisionTower.of(planted.model))
    assert explicit_result.provenance.model_class == "Dinov2Model"
    assert explicit_result.provenance.image_size == (112, 112)
    assert explicit_result.verification.in_sample
    assert explicit_result.scores.dtype == torch.float64


def test_provenance_counts_the_images_that_there_were(planted):
    result = calibrate_briefly(planted.model, synthetic_images(5, seed=3), config=_explicit(planted, num_images=500))
    assert result.norms.num_images == 5
    assert (result.provenance.num_images, result.provenance.images_scored) == (500, 5)


def test_a_result_survives_saving(tmp_path, explicit_result):
    explicit_result.save(tmp_path)
    loaded = CalibrationResult.load(tmp_path)
    assert loaded.to_dict() == explicit_result.to_dict()
    assert torch.equal(loaded.scores, explicit_result.scores)


def test_calibrating_again_gives_the_same(planted, explicit_result):
    again = calibrate_briefly(planted.model, synthetic_images(ENOUGH, seed=99), config=_explicit(planted))
    assert torch.equal(again.scores, explicit_result.scores)
    assert again.register_neurons == explicit_result.register_neurons
    assert [n.score for n in again.register_neurons] == [n.score for n in explicit_result.register_neurons]
    assert again.verification == explicit_result.verification


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_batch_size_does_not_matter(planted, explicit_result, batch_size):
    result = calibrate_briefly(
        planted.model, synthetic_images(ENOUGH, seed=99), config=_explicit(planted, batch_size=batch_size)
    )
    torch.testing.assert_close(result.scores, explicit_result.scores, rtol=1e-4, atol=1e-7)
    assert _places(result.register_neurons) == _places(explicit_result.register_neurons)


def test_images_in_another_order_give_the_same_scores(planted, explicit_result):
    result = calibrate_briefly(planted.model, synthetic_images(ENOUGH, seed=99).flip(0), config=_explicit(planted))
    torch.testing.assert_close(result.scores, explicit_result.scores, rtol=1e-4, atol=1e-7)


def test_the_model_is_left_as_it_was(planted):
    weights = {name: tensor.clone() for name, tensor in planted.model.state_dict().items()}
    modules = [type(module) for module in planted.model.modules()]
    calibrate_briefly(planted.model, synthetic_images(4, seed=99), config=_explicit(planted))
    assert all(torch.equal(tensor, weights[name]) for name, tensor in planted.model.state_dict().items())
    assert [type(module) for module in planted.model.modules()] == modules
    assert not any(m._forward_pre_hooks for m in planted.model.modules())


@pytest.mark.parametrize("config", [{}, {"top_k": 5, "last_layer": 1}], ids=["automatic", "explicit"])
def test_a_model_without_outliers_is_clean_and_its_norms_are_told(bare_case, config):
    model = bare_case.stock_model()
    result = calibrate_briefly(
        model, images(MIN_CLEAN), config=CalibrationConfig(norm_threshold=UNREACHABLE, **config)
    )
    assert (result.verdict, result.register_neurons, result.verification) == ("clean", (), None)
    assert not result.scores.any()
    assert result.norms.num_images > 0
    assert min(result.norms.max) > 0
    assert result.norms.first_outlier_layer is None
    assert result.provenance.images_with_outliers == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_automatic_settings_fix_a_planted_model(family):
    name, fields = FAMILIES[family]
    planted = planted_model(name, neurons_per_layer={2: 2}, **fields)
    result = calibrate_briefly(planted.model, synthetic_images(32, seed=77), config=CalibrationConfig(num_images=32))
    assert result.verdict == "fixed"
    assert set(_places(result.register_neurons)) == set(_places(planted.register_neurons))
    assert result.chosen == AUTOMATIC
    assert (result.config.first_layer, result.config.last_layer) == (2, 2)
    assert result.config.top_k == len(result.register_neurons) == 2
    assert not result.verification.in_sample
    assert result.reasons == ()
    rule = result.outlier_rule  # with its exceptions, so that `verify` counts the same tokens
    assert (rule.norm_threshold, rule.detection_layer) == (result.norms.norm_threshold, result.norms.detection_layer)
    assert rule.content is not None
    detection = {"dinov2": 4, "clip_vision_model": 5}[name]
    assert (result.config.detection_layer, result.norms.detection_layer) == (detection, detection)
    assert result.norms.median[detection] * 1.5 < result.config.norm_threshold < result.norms.max[detection] / 1.5


def test_every_image_serves_one_stage_and_the_last_stage_has_its_own(planted):
    pixel_values = synthetic_images(64, seed=77)
    seen: dict[str, set[int]] = {}

    def progress(stage: str, batches: Iterable[Batch], num_images: int) -> Iterator[Batch]:
        for batch in batches:
            seen.setdefault(stage, set()).update(batch.places)
            yield batch

    config = _explicit(planted, num_images=64, seed=5, top_k=None)
    automatic = calibrate_briefly(planted.model, pixel_values, config=config, progress=progress)
    roles = Roles.of(range(64), 5)
    places = {role: {at for at in range(64) if roles.role(at) == role} for role in (SCORE, SELECT, VERIFY)}
    assert (seen["score"], seen["verify"]) == (places[SCORE], places[VERIFY])
    assert seen["select"] == seen["inspect"] == places[SCORE] | places[SELECT]  # those that scored ask what is missing
    explicit = calibrate_briefly(
        planted.model, pixel_values[sorted(places[SCORE])], config=_explicit(planted, num_images=64, first_layer=2)
    )
    torch.testing.assert_close(automatic.scores, explicit.scores, rtol=1e-4, atol=1e-7)
    assert set(automatic.verification.places) == places[VERIFY]


def test_crops_of_one_photograph_serve_one_stage_and_count_once(planted):
    """Two crops each of 32 photographs: eight photographs verify, with both of their crops."""
    named = NamedImages(synthetic_images(64, seed=77), DataSource(), photographs=[at // 2 for at in range(64)])
    gate = dataclasses.replace(BRIEF, num_images=48)
    config = _explicit(planted, num_images=64, top_k=None)
    found = calibrate_briefly(planted.model, named, config=config, gate=gate)
    places = found.verification.places
    assert (len(places), len({place // 2 for place in places})) == (16, 8)
    assert (found.verification.num_images, found.verification.num_photographs) == (16, 8)
    assert found.norms.num_images == 48
    assert found.norms.num_photographs == 24
    assert found.verdict == "fixed"


@pytest.mark.parametrize("seed", [0, 23, 15])
def test_one_image_finds_neurons_but_shows_nothing(planted, seed):
    config = _explicit(planted, top_k=None, seed=seed)
    result = calibrate_briefly(planted.model, synthetic_images(1, seed=77), config=config)
    assert set(_places(result.register_neurons)) == set(_places(planted.register_neurons))
    assert result.headline == "unresolved: too few images"
    assert result.verification.in_sample
    assert result.verification.outlier_ratio_interval is None
    assert result.reasons[0].startswith("too few images: 1 photographs, 1 of them to verify with")


def _verdicts(model: nn.Module, count: int, **settings: Any) -> CalibrationResult:
    return calibrate_briefly(model, synthetic_images(count, seed=77), config=CalibrationConfig(**settings))


@pytest.mark.parametrize("count", [2, 7, 20, 23])
@pytest.mark.parametrize("top_k", [None, 2], ids=["automatic", "top_k"])
def test_few_photographs_give_neither_clean_nor_fixed(planted, count, top_k):
    """However clear they look; and how many would do is said."""
    settings = {"norm_threshold": planted.norm_threshold, "top_k": top_k}
    found = _verdicts(planted.model, count, **settings)
    assert found.headline == "unresolved: too few images"
    assert "About 24 would do" in found.reasons[0]
    clean = _verdicts(planted.model, count, top_k=top_k, norm_threshold=UNREACHABLE)
    assert clean.headline == "unresolved: too few images"
    assert "29 would do" in clean.reasons[0]
    assert f"{count} photographs without an outlier token" in clean.reasons[0]


@pytest.mark.parametrize("top_k", [None, 2], ids=["automatic", "top_k"])
def test_48_photographs_can_give_every_verdict(planted, top_k):
    settings = {"norm_threshold": planted.norm_threshold, "top_k": top_k}
    assert _verdicts(planted.model, 48, **settings).headline == "fixed"
    assert _verdicts(planted.model, 48, top_k=top_k, norm_threshold=UNREACHABLE).headline == "clean"
    searched = {"first_layer": 3, "last_layer": 3}
    assert _verdicts(planted.model, 48, **settings, **searched).headline == "unresolved"


@pytest.mark.parametrize(("count", "verdict"), [(28, "unresolved"), (29, "clean")])
@pytest.mark.parametrize("top_k", [None, 2], ids=["automatic", "top_k"])
def test_clean_needs_29_photographs_those_held_out_among_them(count, verdict, top_k):
    model = DINOV2.stock_model()
    result = calibrate_briefly(model, images(count), config=CalibrationConfig(top_k=top_k))
    assert result.verdict == verdict
    assert result.looks[0].num_photographs == count
    if verdict == "clean":
        assert "no high-norm outlier patches in 29 photographs of Tensor at 16 px" in result.meaning
        assert "fewer than 9.8 % of such photographs have one" in result.meaning  # 1 - 0.05^(1/29)
        assert "Low-norm artifacts are not excluded" in result.meaning


def test_copies_of_few_photographs_are_few():
    model = DINOV2.stock_model()
    result = calibrate_briefly(model, images(7).repeat(8, 1, 1, 1), config=CalibrationConfig())
    assert result.headline == "unresolved: too few images"
    assert "7 photographs without an outlier token" in result.reasons[0]


def test_clean_is_looked_for_at_the_size_of_the_training_too(planted):
    """Small images have no flat patch; enlarged ones have."""
    assert planted.model.config.image_size == 112
    small = torch.nn.functional.interpolate(synthetic_images(70, seed=7), size=(56, 56), mode="area").clamp_max(0.6)
    config = CalibrationConfig(num_images=70, norm_threshold=planted.norm_threshold)
    seen: list[tuple[int, ...]] = []

    def progress(stage: str, batches: Iterable[Batch], num_images: int) -> Iterator[Batch]:
        for batch in batches:
            seen.extend([tuple(batch.pixel_values.shape[-2:])] * len(batch))
            yield batch

    quiet = planted_model()
    quiet.model.load_state_dict(planted.model.state_dict())
    result = calibrate_briefly(quiet.model, small, config=config, progress=progress)
    assert [(look.image_size, look.num_photographs) for look in result.looks] == [((56, 56), 70), ((112, 112), 64)]
    assert seen.count((112, 112)) == 64
    assert result.verdict == ("clean" if result.looks[1].is_clean else "unresolved")


def test_a_model_that_has_outliers_only_at_the_size_of_its_training_is_not_clean(planted):
    """The processor makes small pictures of pictures whose flat patches are a patch wide at full size only."""
    photographs = [_photograph(image) for image in synthetic_images(30, seed=99)]
    processor = BitImageProcessorPil(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, image_mean=[0.5] * 3, image_std=[0.25] * 3
    )
    config = CalibrationConfig(norm_threshold=planted.norm_threshold)
    result = calibrate_briefly(planted.model, photographs, config=config, processor=processor)
    assert [look.image_size for look in result.looks] == [(28, 28), (112, 112)]
    assert result.looks[0].is_clean
    assert result.looks[1].with_outliers > 0
    assert (result.headline, result.register_neurons) == ("unresolved", ())
    assert "No outlier token at 28 px, but at 112 px, the size of the model's training" in result.reasons[0]
    whole = dataclasses.replace(config, num_images=30)
    at_size = BitImageProcessorPil(
        size={"shortest_edge": 112}, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.25] * 3
    )
    assert calibrate_briefly(planted.model, photographs, config=whole, processor=at_size).verdict == "fixed"


def test_a_gate_that_nothing_passes_gives_unresolved(planted):
    gate = dataclasses.replace(BRIEF, max_drift=-1.0)
    result = calibrate_briefly(planted.model, synthetic_images(4, seed=77), config=_explicit(planted), gate=gate)
    assert result.verdict == "unresolved"
    assert [reason for reason in result.reasons if "drift of the pooled feature" in reason and "Try" in reason]
    assert set(_places(result.register_neurons)) == set(_places(planted.register_neurons))


def test_neurons_that_only_suit_the_images_that_chose_them_ask_for_more_images():
    """45 neurons, of which those of the few outliers of four images are found."""
    known = make_known_model("clip", "planted", trigger="bright", seed=0)
    result = calibrate_briefly(known.model, synthetic_images(25, seed=20_000), config=CalibrationConfig(num_images=25))
    assert result.verdict == "unresolved"
    assert result.selections[-1].outcome.outlier_ratio <= 0.1 < result.verification.outlier_ratio
    assert result.reasons[-1].startswith("too few images for so many neurons")


def test_norms_that_hint_at_outliers_are_not_clean():
    """The same model, on a number of images that nearly shows its outliers as a second population."""
    known = make_known_model("clip", "planted", trigger="bright", seed=0)
    result = calibrate_briefly(known.model, synthetic_images(36, seed=20_000), config=CalibrationConfig(num_images=36))
    assert result.headline == "unresolved: too few images"
    assert result.reasons == (
        "too few images: the norms of 36 photographs at 112 px hint at outliers, without showing them. 72 would do: "
        "give more with `--dataset` and `--num-images`.",
    )


def test_neurons_outside_the_layers_searched_give_unresolved(planted):
    """The planted layer is 2."""
    config = _explicit(planted, first_layer=3, last_layer=3)
    result = calibrate_briefly(planted.model, synthetic_images(ENOUGH, seed=77), config=config)
    assert {layer for layer, _ in _places(result.register_neurons)} == {3}
    assert result.verdict == "unresolved"
    assert not any("too few images" in reason for reason in result.reasons)
    assert not result.scores[:3].any()


@torch.no_grad()
def test_prefix_tokens_count_as_outliers_only_if_asked():
    """A CLS token with a huge norm, ordinary patches."""
    model, pixel_values = DINOV2.stock_model(), images(MIN_CLEAN)
    model.embeddings.cls_token.fill_(0.0)
    model.embeddings.cls_token[..., 3] = 1e4
    acts_by_layer, _ = _acts_and_states(DINOV2, model, pixel_values)
    config = CalibrationConfig(norm_threshold=5e3, last_layer=2, top_k=4)
    assert calibrate_briefly(model, pixel_values, config=config).verdict == "clean"
    asked = calibrate_briefly(model, pixel_values, config=dataclasses.replace(config, detect_on_prefix=True))
    assert asked.provenance.images_with_outliers == MIN_CLEAN
    expected = torch.stack([acts[:, 0].abs().mean(0) for acts in acts_by_layer]).double()
    torch.testing.assert_close(asked.scores, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("detect_on_prefix", [False, True])
def test_test_time_registers_are_no_outliers(planted, detect_on_prefix):
    """A patched model, calibrated for a second round: its norms sit on the register, and nothing is left to do."""
    patched = add_test_time_registers(planted.model, planted.register_neurons)
    config = _explicit(planted, detect_on_prefix=detect_on_prefix, num_images=MIN_CLEAN)
    result = calibrate_briefly(patched, synthetic_images(MIN_CLEAN, seed=77), config=config)
    assert result.provenance.images_with_outliers == 0
    assert result.verdict == "clean"


def test_max_active_fraction_leaves_out_neurons_that_are_always_active(planted):
    """A neuron of layer 3 that always writes a huge activation outranks the planted ones, unless filtered."""
    loud = planted_model()
    with torch.no_grad():
        loud.model.encoder.layer[3].mlp.fc1.weight[0] = 0
        loud.model.encoder.layer[3].mlp.fc1.bias[0] = 1e4
        loud.model.encoder.layer[3].mlp.fc2.weight[:, 0] = 0
    pixel_values = synthetic_images(4, seed=77)
    unfiltered = calibrate_briefly(loud.model, pixel_values, config=_explicit(loud))
    filtered = calibrate_briefly(loud.model, pixel_values, config=_explicit(loud, max_active_fraction=0.5))
    assert _places(unfiltered.register_neurons)[0] == (3, 0)
    assert set(_places(filtered.register_neurons)) == set(_places(loud.register_neurons))


def test_a_generator_serves_every_stage(planted):
    config = CalibrationConfig(num_images=ENOUGH, batch_size=6)
    from_list = calibrate_briefly(planted.model, list(synthetic_images(ENOUGH, seed=99)), config=config)
    from_generator = calibrate_briefly(planted.model, iter(synthetic_images(ENOUGH, seed=99)), config=config)
    assert torch.equal(from_generator.scores, from_list.scores)
    assert from_generator.verification == from_list.verification


def test_a_local_path_brings_its_processor(planted, tmp_path):
    planted.model.save_pretrained(tmp_path)
    processor = BitImageProcessorPil(do_resize=False, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.25] * 3)
    processor.save_pretrained(tmp_path)
    photographs = [_photograph(image) for image in synthetic_images(6, seed=99)]
    by_path = calibrate_briefly(str(tmp_path), photographs, config=_explicit(planted))
    by_model = calibrate_briefly(planted.model, photographs, config=_explicit(planted), processor=processor)
    assert by_path.provenance.model == str(tmp_path)
    assert set(_places(by_path.register_neurons)) == set(_places(planted.register_neurons))
    torch.testing.assert_close(by_path.scores, by_model.scores, rtol=1e-4, atol=1e-7)


def _photograph(pixel_values: Tensor) -> Image.Image:
    array = ((pixel_values * 0.25 + 0.5).clamp(0, 1) * 255).round().byte().permute(1, 2, 0)
    return Image.fromarray(np.asarray(array))


def test_progress_sees_every_stage_with_its_images(planted):
    seen: dict[str, int] = {}

    def progress(stage: str, batches: Iterable[Batch], num_images: int) -> Iterator[Batch]:
        for batch in batches:
            seen[stage] = seen.get(stage, 0) + len(batch)
            yield batch

    calibrate_briefly(planted.model, synthetic_images(6, seed=1), config=_explicit(planted), progress=progress)
    assert seen == {"inspect": 6, "score": 6, "verify": 6}
    seen.clear()
    gate = dataclasses.replace(BRIEF, constant_mode=True)
    calibrate(planted.model, synthetic_images(64, seed=1), gate=gate, progress=progress)
    assert list(seen) == ["inspect", "score", "select", "verify", "constants"]
    assert seen["select"] == 64 - seen["verify"]
    assert seen["score"] < seen["select"]


@torch.no_grad()
def test_inspect_norms_equals_hidden_states(bare_case):
    model, pixel_values = bare_case.stock_model(), images(5)
    states = model(**VisionTower.of(model).inputs(pixel_values), output_hidden_states=True).hidden_states[1:]
    norms = torch.stack([state[:, bare_case.family.num_prefix_tokens :].norm(dim=-1).flatten() for state in states])
    config = CalibrationConfig(batch_size=2, norm_threshold=float(norms[1].median()), detection_layer=1)
    report = inspect_norms(model, pixel_values, config=config)
    assert (report.num_images, report.num_patches, report.detection_layer) == (5, 80, 1)
    assert report.mean == pytest.approx(norms.mean(1).tolist(), rel=1e-5)
    assert report.max == pytest.approx(norms.amax(1).tolist(), rel=1e-5)


@pytest.mark.parametrize("run", [calibrate, inspect_norms])
@pytest.mark.parametrize(
    "model",
    [
        ResNetModel(ResNetConfig(embedding_size=4, hidden_sizes=[4], depths=[1])),
        BeitModel(BeitConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)),
    ],
    ids=lambda model: type(model).__name__,
)
def test_an_unsupported_model_is_refused_before_any_image_is_read(run, model):
    name = type(model).__name__
    message = rf"{name} \(model type .* cannot be given test-time registers: .* docs/families\.md lists the fam"
    with pytest.raises(ValueError, match=message):
        run(model, _unread())


def _unread() -> Iterator[Any]:
    pytest.fail("no image must be read")
    yield


@pytest.mark.parametrize("run", [calibrate, inspect_norms])
def test_a_path_object_is_taken_as_a_path(run, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        run(Path(tmp_path), images())


@pytest.mark.parametrize("run", [calibrate, inspect_norms])
@pytest.mark.parametrize("settings", [{}, {"norm_threshold": 1.0, "last_layer": 1, "top_k": 1}])
def test_no_images_are_refused(run, settings):
    with pytest.raises(
        ValueError, match=r"needs at least one readable image, got none\. Check the data set or folder"
    ):
        run(DINOV2.stock_model(), [], config=CalibrationConfig(**settings))


@pytest.mark.parametrize("name", ["detection_layer", "first_layer", "last_layer"])
def test_a_layer_out_of_range_is_refused_before_any_image_is_read(name):
    with pytest.raises(ValueError, match=rf"`{name}` is a layer from -3 to 2"):
        calibrate_briefly(DINOV2.stock_model(), _unread(), config=CalibrationConfig(**{name: 3}))


def test_photographs_without_a_processor_are_refused():
    with pytest.raises(ValueError, match="need an image processor, and none was found for this model"):
        calibrate_briefly(DINOV2.stock_model(), [Image.new("RGB", (16, 16))])


# in these families models can be planted
AROUND_PLANTED = [case for case in ONE_OF_EACH_HEAD.values() if case.family.name in planted_kinds.FAMILIES]


@pytest.mark.parametrize("case", AROUND_PLANTED, ids=lambda case: case.name)
def test_a_head_or_a_second_tower_does_not_hide_the_planted_neurons(case):
    """Classifiers, backbones and models with a text tower, around a planted trunk."""
    kinds = ("use_swiglu_ffn", "use_gated_mlp", "num_register_tokens")
    fields = {name: value for name, value in case.family.config_fields.items() if name in kinds}
    if case.family.name == "aimv2":  # its published models have no biases, which planted neurons need
        fields |= {"mlp_bias": True, "qkv_bias": True, "use_head": False}
    planted = planted_model(case.family.heads[0].config_class.model_type, **fields)
    config = planted.model.config
    if case.has_two_towers:
        config = case.config_class(vision_config=config.to_dict(), text_config=TINY_TEXT)
    model = case.stock_class(config).eval()
    loaded = case.trunk_of(model).load_state_dict(planted.model.state_dict(), strict=False)
    assert loaded.missing_keys == []  # of the bare model's pooling a head may use nothing

    result = calibrate_briefly(model, synthetic_images(ENOUGH, seed=99), config=_explicit(planted))
    assert set(_places(result.register_neurons)) == set(_places(planted.register_neurons))
    assert result.verdict == "fixed"
    assert result.provenance.model_class == case.stock_class.__name__
    patched = add_test_time_registers(model, result.register_neurons)
    assert case.stock_class in type(patched).__mro__
