"""Planted models: what was planted fires, makes outliers and a sink, and test-time registers take them over."""

import pytest
import torch
from benchmarks.planted_kinds import FAMILIES
from modeling.laws import down_projection, reading

from ttreg_hf.applying import add_test_time_registers
from ttreg_hf.measuring.tower import VisionTower
from ttreg_hf.planted import TINY, planted_model, synthetic_images
from ttreg_hf.register_neuron import RegisterNeuron

# without trained registers where the confusion table has some; AIMv2's patches are all alike by one trigger
ARCHITECTURES = {name: known for name, known in FAMILIES.items() if name != "aimv2"}
ARCHITECTURES["dinov3-gated"] = ("dinov3_vit", {"use_gated_mlp": True})
LAYOUTS = [{2: 2}, {1: 1}, {1: 2, 2: 2, 3: 2}]
TRIGGERS = ["bright", "low_information"]
# every architecture with both triggers; seeds and layouts take turns (ten seeds of each: scripts/confusion_table.py)
GRID = [
    (name, trigger, (turn + place) % 3, LAYOUTS[(2 * turn + place) % 3])
    for turn, name in enumerate(ARCHITECTURES)
    for place, trigger in enumerate(TRIGGERS)
]


class Run:
    """A planted model before and after, on its sample; norms `(L, B, tokens)`, attention of the last block."""

    def __init__(self, name, trigger, seed, neurons_per_layer):
        family, fields = ARCHITECTURES[name]
        self.planted = planted_model(family, trigger=trigger, seed=seed, neurons_per_layer=neurons_per_layer, **fields)
        self.neurons_per_layer = neurons_per_layer
        model, sample = self.planted.model, self.planted.sample
        model.set_attn_implementation("eager")
        patched = add_test_time_registers(model, self.planted.register_neurons, output_registers=True)
        options = {"output_hidden_states": True, "output_attentions": True}
        with torch.no_grad():
            seen = VisionTower.of(model).inputs(sample)
            self.before, self.after = model(**seen, **options), patched(**seen, **options)
        self.layout = patched.token_layout
        self.prefix = VisionTower.of(model).layout.num_prefix_tokens
        self.norms_before = torch.stack(self.before.hidden_states[1:]).norm(dim=-1)
        self.norms_after = torch.stack(self.after.hidden_states[1:]).norm(dim=-1)
        self.is_outlier = self.norms_before[-1, :, self.prefix :] > self.planted.norm_threshold  # (B, N)


@pytest.fixture(scope="module", params=GRID, ids=lambda point: "-".join(map(str, point)))
def run(request):
    return Run(*request.param)


def test_register_neurons_are_those_asked_for_strongest_first(run):
    neurons = run.planted.register_neurons
    assert {layer: [n.layer for n in neurons].count(layer) for layer in run.neurons_per_layer} == run.neurons_per_layer
    assert len({(neuron.layer, neuron.neuron) for neuron in neurons}) == len(neurons)
    scores = [neuron.score for neuron in neurons]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == len(scores)


def test_some_patches_are_outliers_and_most_are_not(run):
    assert 0.02 < run.is_outlier.float().mean() < 0.12
    assert run.is_outlier.any(dim=1).sum() >= len(run.is_outlier) // 2


def test_every_planted_neuron_fires_on_outliers_and_nowhere_else(run):
    model, tower = run.planted.model, VisionTower.of(run.planted.model)
    for neuron in run.planted.register_neurons:
        with reading(down_projection(tower.blocks[neuron.layer])) as acts, torch.no_grad():
            model(**tower.inputs(run.planted.sample))
        prefix, patches = acts[0][..., neuron.neuron].tensor_split([run.prefix], dim=1)
        firing = patches > neuron.score / 4
        assert firing.any()
        assert run.is_outlier[firing].all()
        assert (prefix.abs() < neuron.score / 4).all()
        median = patches[firing].median()
        assert neuron.score / 2 < median < 2 * neuron.score


def test_the_papers_score_finds_exactly_what_was_planted(run):
    """Mean |activation| at an image's outliers, then over the images, in the layers up to where outliers begin."""
    model, tower = run.planted.model, VisionTower.of(run.planted.model)
    last = max(run.neurons_per_layer)
    scores = {}
    for layer, block in enumerate(tower.blocks[: last + 1]):
        with reading(down_projection(block)) as acts, torch.no_grad():
            model(**tower.inputs(run.planted.sample))
        magnitudes = acts[0][:, run.prefix :].abs()
        means = [
            patches[outlier].mean(dim=0)
            for patches, outlier in zip(magnitudes, run.is_outlier, strict=True)
            if outlier.any()
        ]
        for neuron, score in enumerate(torch.stack(means).mean(dim=0).tolist()):
            scores[layer, neuron] = score
    planted = {(neuron.layer, neuron.neuron) for neuron in run.planted.register_neurons}
    assert set(sorted(scores, key=scores.__getitem__, reverse=True)[: len(planted)]) == planted


def test_outliers_begin_after_the_first_planted_layer(run):
    largest = run.norms_before[:, :, run.prefix :].amax(dim=(1, 2))
    first = min(run.neurons_per_layer)
    assert (largest[:first] < run.planted.norm_threshold).all()
    assert (largest[first:] > run.planted.norm_threshold).all()


def test_nearly_all_patches_are_well_below_the_threshold_or_well_above(run):
    """The neurons ramp up linearly above their bias, so a patch that just crosses it may lie between."""
    ratio = run.norms_before[-1, :, run.prefix :] / run.planted.norm_threshold
    assert ((ratio > 0.75) & (ratio < 1.25)).float().mean() < 0.015
    assert ratio[run.is_outlier].median() > 3
    assert ratio[~run.is_outlier].median() < 0.5


def test_after_patching_no_patch_is_an_outlier_after_any_block(run):
    assert run.norms_after[:, :, run.layout.patches].max() < run.planted.norm_threshold


def test_after_patching_the_register_is_the_outlier(run):
    largest = run.norms_before[-1, :, run.prefix :].amax(dim=1)
    register = run.norms_after[-1, :, run.layout.registers].squeeze(1)
    had_outliers = run.is_outlier.any(dim=1)
    assert (register > 0.9 * largest)[had_outliers].all()
    clearly = largest > 1.25 * run.planted.norm_threshold
    assert (register > run.planted.norm_threshold)[clearly].all()
    assert clearly.sum() >= had_outliers.sum() - 1


def _pooled(output, layout):
    """The model's own pooled feature; of one that has none the CLS token, or the mean of the patches."""
    if output.get("pooler_output") is not None:
        return output.pooler_output
    tokens = output.last_hidden_state
    return tokens[:, 0] if layout.num_prefix_tokens else tokens[:, layout.patches].mean(dim=1)


def test_after_patching_the_pooled_feature_points_where_it_did(run):
    before = _pooled(run.before, VisionTower.of(run.planted.model).layout)
    similarity = torch.cosine_similarity(before, _pooled(run.after, run.layout))
    # without CLS all patches are pooled, and each feels that the register, which holds nothing else, draws other
    # attention than a patch on which the neurons fire a little: 0.991 at the least, in an image without any outlier
    # and a plain mean takes in the former outliers too, which no pooling head leaves out
    has_head = run.before.get("pooler_output") is not None
    assert similarity.min() > (0.999 if run.prefix else 0.99 if has_head else 0.98)
    assert similarity.mean() > (0.9995 if run.prefix else 0.997 if has_head else 0.99)


def test_the_cls_tokens_attention_goes_to_outliers_before_and_to_the_register_after(run):
    with_outliers = run.is_outlier.any(dim=1)
    rows = slice(0, 1) if run.prefix else slice(None)  # the CLS token's, or those of all patches
    before = run.before.attentions[-1].mean(dim=1)[:, rows].mean(dim=1)  # (B, H, T, T) -> (B, T)
    after = run.after.attentions[-1].mean(dim=1)[:, rows].mean(dim=1)
    on_outliers = (before[:, run.prefix :] * run.is_outlier).sum(dim=1)[with_outliers]
    uniform = 1.0 / before.shape[1]
    assert (on_outliers / run.is_outlier.sum(dim=1)[with_outliers] > 5 * uniform).all()
    on_register = after[:, run.layout.registers].sum(dim=1)[with_outliers]
    left = (after[:, run.layout.patches] * run.is_outlier).sum(dim=1)[with_outliers]
    assert (on_register > 10 * uniform).all()
    # a patch asks by its content too, so without CLS former outliers keep about the share of any patch (1.3 at most)
    bound = 0.5 if run.prefix else 1.5
    assert (left / run.is_outlier.sum(dim=1)[with_outliers] < bound * uniform).all()
    assert on_register.mean() > 0.2


def test_the_same_seed_gives_the_same_model_and_another_seed_another():
    first, again, other = planted_model(seed=1), planted_model(seed=1), planted_model(seed=2)
    assert first.register_neurons == again.register_neurons != other.register_neurons
    assert all(torch.equal(*pair) for pair in zip(first.model.parameters(), again.model.parameters(), strict=True))
    assert not torch.equal(first.sample, other.sample)


def test_the_random_state_outside_is_left_alone():
    before = torch.get_rng_state()
    planted_model(seed=3)
    assert torch.equal(torch.get_rng_state(), before)


def test_strengths_are_the_scores():
    planted = planted_model(neurons_per_layer={2: 1, 1: 2}, strengths=[5.0, 9.0, 7.0])
    assert [(neuron.layer, neuron.score) for neuron in planted.register_neurons] == [(1, 9.0), (2, 7.0), (1, 5.0)]
    assert all(isinstance(neuron, RegisterNeuron) for neuron in planted.register_neurons)


def test_images_and_config_fields_of_ones_own_are_used():
    images = synthetic_images(8, size=56, seed=5)
    planted = planted_model(images=images, image_size=56, num_hidden_layers=5, outlier_fraction=0.06)
    assert torch.equal(planted.sample, images)
    assert (planted.model.config.image_size, planted.model.config.num_hidden_layers) == (56, 5)


def test_synthetic_images_are_textured_with_a_few_flat_bright_patches():
    images = synthetic_images(4, size=56, patch_size=14, seed=1)
    assert (images.shape, images.dtype) == ((4, 3, 56, 56), torch.float32)
    tiles = images.unfold(2, 14, 14).unfold(3, 14, 14)  # (B, 3, h, w, 14, 14)
    flat = tiles.std(dim=(1, 4, 5)) < 0.2
    assert flat.sum(dim=(1, 2)).tolist() == [count for count in flat.sum(dim=(1, 2)).tolist() if 3 <= count <= 5]
    assert (tiles.mean(dim=(1, 4, 5))[flat] > 1.0).all()
    assert (tiles.mean(dim=(1, 4, 5))[~flat] < 0.5).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"family": "resnet"},
            r"^'resnet' is not a supported family\. docs/families\.md lists the families that can\.$",
        ),
        ({"trigger": "dark"}, r"`trigger` is one of bright, low_information, got 'dark'"),
        ({"neurons_per_layer": {0: 1}}, r"names layers from 1 to 4 \(the sink needs one more\), got \[0\]"),
        ({"neurons_per_layer": {5: 1}}, r"names layers from 1 to 4 .*got \[5\]"),
        ({"strengths": [1.0]}, r"`strengths` has one value a neuron, got 1 for 2 neurons"),
        (
            {"images": synthetic_images(4, size=TINY["image_size"]) - 5.0},  # darker than the prefix tokens
            r"Layer 2 cannot tell \d+ patches of these images by the trigger 'bright'.*Give more varied images",
        ),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_a_wrong_argument_gives_its_message(options, message):
    with pytest.raises(ValueError, match=message):
        planted_model(**options)
