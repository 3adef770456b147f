"""What the harness has to show: a planted sink ruins dense tasks and patching restores them; without one, nothing.

Planted models show the mechanism; that real checkpoints gain is not shown here.
"""

import copy

import pytest
import torch
from transformers import Dinov2Config, Dinov2Model

from ttreg_hf import EvaluationConfig, evaluate
from ttreg_hf.evaluation.object_discovery import ObjectDiscovery
from ttreg_hf.evaluation.segmentation_probe import SegmentationProbe
from ttreg_hf.evaluation.token_probe import TokenProbe
from ttreg_hf.measuring.tower import VisionTower
from ttreg_hf.planted import TINY, planted_model

from .scenes import pixels_of, scenes

DISCOVERY = ObjectDiscovery(features=("out",), normalize=(True,), biases=(-0.5,))


@pytest.fixture(scope="module")
def examples():
    return scenes(24)


@pytest.fixture(scope="module")
def planted(examples):
    return planted_model(trigger="low_information", images=pixels_of(examples), outlier_fraction=0.045)


@pytest.fixture(scope="module")
def unplanted(planted):
    """The same model, whose register neurons write nothing."""
    model = copy.deepcopy(planted.model)
    with torch.no_grad():
        for neuron in planted.register_neurons:
            VisionTower.of(model).down_projections[neuron.layer].weight[:, neuron.neuron] = 0
    return model


def figures(model, examples, task, neurons, **options):
    """Metric (with its setting, where there are several) and row -> figure."""
    found = evaluate(model, examples, task=task, register_neurons=neurons, **options)
    settings = {figure.setting for figure in found.figures}
    return {(figure.metric if len(settings) == 1 else figure.label, figure.row): figure for figure in found.figures}


@pytest.mark.parametrize(
    ("task", "metrics"),
    [(DISCOVERY, ["CorLoc"]), ("segmentation", ["mIoU", "pixel accuracy", "mAP"])],
    ids=["object discovery", "attention segmentation"],
)
def test_the_sink_ruins_it_and_patching_restores_it(planted, unplanted, examples, task, metrics):
    found = figures(planted.model, examples, task, planted.register_neurons)
    never = figures(unplanted, examples, task, planted.register_neurons)
    for metric in metrics:
        base, patched, before = found[metric, "base"], found[metric, "patched"], never[metric, "base"]
        assert base.high < min(patched.low, before.low)
        assert patched.value == pytest.approx(before.value, abs=0.03)
        assert patched.difference.low > 0
        # what the neurons wrote was the sink alone: without them it is gone too; other neurons do nothing
        assert found[metric, "zeroed, not moved"].value == pytest.approx(before.value, abs=0.03)
        assert found[metric, "random neurons"].value == pytest.approx(base.value, abs=0.03)


@pytest.fixture(scope="module")
def random_model():
    torch.manual_seed(1)
    return Dinov2Model(Dinov2Config(**TINY)).eval()


@pytest.mark.parametrize(
    "task",
    [ObjectDiscovery(features=("out",), normalize=(True,), biases=(-0.5, 0.0)), "segmentation"],
    ids=["object discovery", "attention segmentation"],
)
@pytest.mark.parametrize("name", ["unplanted", "random_model"])
def test_a_model_without_a_sink_shows_no_difference(name, planted, examples, task, request):
    """Whatever neurons are moved, no row is better or worse than the base model: the harness takes no side.

    Moving any neuron changes something; that is a fraction of a percent here, and of either sign.
    """
    model = request.getfixturevalue(name)
    rows = [each for each in figures(model, examples, task, planted.register_neurons).values() if each.row != "base"]
    assert len(rows) in (6, 9)
    assert max(abs(each.value) for each in rows) > 0.4  # there is something to lose
    for figure in rows:
        assert figure.difference.low <= 0.005
        assert figure.difference.high >= -0.005
        assert abs(figure.difference.value) < 0.02


def test_a_linear_layer_finds_objects_better_without_the_sink(planted, examples):
    task = SegmentationProbe(epochs=5, images_per_step=8, learning_rate=0.03)
    found = figures(planted.model, examples[:12], task, planted.register_neurons, train=examples[12:])
    assert found["mIoU", "base"].value > 0.5  # it learns at all
    assert found["mIoU", "patched"].difference.low > 0


@pytest.mark.parametrize("task", ["knn", "linear"])
def test_classification_is_measured_on_the_same_images_in_every_row(planted, examples, task):
    found = figures(planted.model, examples[:8], task, planted.register_neurons, train=examples[8:])
    assert [row for _, row in found] == ["base", "patched", "zeroed, not moved", "random neurons"]
    assert all(figure.value * 8 == round(figure.value * 8) for figure in found.values())


def test_token_probe_tells_which_token_knows_the_label(examples):
    """A model whose CLS says the label and nothing else, and whose patches are noise."""
    planted = planted_model(trigger="low_information", images=pixels_of(examples), outlier_fraction=0.045)

    seen: dict[str, torch.Tensor] = {}

    def write_label(module, args):
        noise = torch.randn(args[0].shape)
        noise[:, 0] = 0.0
        noise[:, 0, 9] = seen["image"][:, 0, 0, 0]
        return (noise, *args[1:])

    last = VisionTower.of(planted.model).blocks[-1]
    with torch.no_grad():  # what the last block is given it hands on
        last.layer_scale1.lambda1.zero_()
        last.layer_scale2.lambda1.zero_()
    last.register_forward_pre_hook(write_label)
    planted.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.update(image=kwargs["pixel_values"]), with_kwargs=True
    )
    told = [dict(example, image=example["image"].clone()) for example in examples]
    for example in told:
        example["image"][0, 0, 0] = example["label"]
    found = evaluate(
        planted.model,
        told[:12],
        task=TokenProbe(),
        train=told[12:],
        register_neurons=planted.register_neurons,
        config=EvaluationConfig(resamples=10),
    )
    base = {figure.setting: figure.value for figure in found.figures if figure.row == "base"}
    assert base["CLS"] == 1.0
    assert base["random patch"] < 0.9
