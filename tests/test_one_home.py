"""Faults of the time when a concept had two homes that did not agree."""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from transformers import BitImageProcessorPil, ViTConfig, ViTForImageClassification, ViTModel

from ttreg_hf import CalibrationConfig, EvaluationConfig, add_test_time_registers, calibrate, evaluate
from ttreg_hf.cli import main
from ttreg_hf.evaluation.scores import Scores, Tally
from ttreg_hf.images.batches import Batch
from ttreg_hf.images.data_sets import NamedImages
from ttreg_hf.images.data_source import DataSource
from ttreg_hf.loading import ModelSource, load_model
from ttreg_hf.measuring.batch_limit import BatchLimit
from ttreg_hf.measuring.map_changes import map_changes
from ttreg_hf.measuring.recorder import Recorder
from ttreg_hf.measuring.tower import VisionTower
from ttreg_hf.planted import planted_model, synthetic_images
from ttreg_hf.publishing.base_weights import weights_checksum
from ttreg_hf.publishing.card import model_card
from ttreg_hf.publishing.checkpoint import make_checkpoint, read_calibration, save_checkpoint
from ttreg_hf.publishing.checkpoint_config import read_config
from ttreg_hf.publishing.privacy import calibration_without_local_names

TINY = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 40}
CLASSIFIER = {"image_size": 32, "patch_size": 4, "num_labels": 5, **TINY}


@pytest.fixture(scope="module")
def planted():
    return planted_model("dinov2")


@pytest.fixture(scope="module")
def result(planted):
    config = CalibrationConfig(num_images=24, top_k=2, last_layer=2, norm_threshold=planted.norm_threshold)
    return calibrate(planted.model, synthetic_images(24), config=config)


@pytest.fixture
def classifier(tmp_path):
    """A classification checkpoint, as ViT's are on the Hub: it has no pooler."""
    torch.manual_seed(1)
    model = ViTForImageClassification(ViTConfig.from_dict(CLASSIFIER))
    folder = tmp_path / "classifier"
    model.save_pretrained(folder)
    BitImageProcessorPil(size={"shortest_edge": 32}, do_center_crop=False).save_pretrained(folder)
    return folder


def _feature(model, images):
    with Recorder(VisionTower.to_measure(model)) as recorder:
        return recorder(images).feature_BD


def test_two_loads_of_a_checkpoint_without_a_pooler_give_the_same_feature(classifier):
    """A `ViTModel` of it, as users load one, has a pooler that is random at every load."""
    images = torch.randn(2, 3, 32, 32)
    loads = [
        load_model(str(classifier)),
        load_model(str(classifier)),
        *map(ViTModel.from_pretrained, [classifier] * 2),
    ]
    first, *others = (_feature(model, images) for model in loads)
    assert all(torch.equal(first, other) for other in others)


def test_a_bare_model_whose_pooler_was_not_saved_is_loaded_without_one(tmp_path):
    ViTModel(ViTConfig(image_size=32, patch_size=4, **TINY), add_pooling_layer=False).save_pretrained(
        tmp_path / "bare"
    )
    loads = [load_model(str(tmp_path / "bare")) for _ in range(2)]
    assert loads[0].pooler is None
    assert weights_checksum(loads[0]) == weights_checksum(loads[1])


def test_a_head_stays_a_head(classifier, tmp_path):
    base = load_model(str(classifier))
    patched = add_test_time_registers(base, [[1, 2]])
    save_checkpoint(patched, tmp_path / "checkpoint")
    assert read_config(tmp_path / "checkpoint").architectures == ["ViTTTRegForImageClassification"]
    again = load_model(str(tmp_path / "checkpoint"))
    pixels = torch.randn(2, 3, 32, 32)
    assert torch.equal(again(pixels).logits, patched(pixels).logits)
    # what a repository without weights checks: the base model's weights, loaded by the patched class, are these
    fetched = type(patched).from_pretrained(classifier, config=patched.config).eval()
    assert weights_checksum(fetched) == weights_checksum(again) == weights_checksum(base)


def test_a_checkpoint_that_names_a_head_but_holds_none_is_a_bare_model(tmp_path):
    model = ViTForImageClassification(ViTConfig.from_dict(CLASSIFIER))
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("classifier")}
    model.save_pretrained(tmp_path / "headless", state_dict=state)
    assert type(load_model(str(tmp_path / "headless"))) is ViTModel


@pytest.mark.parametrize("part", ["layers.1.mlp.fc1.weight", "embeddings.cls_token"])
def test_weights_of_the_tower_that_are_missing_are_an_error_that_names_them(tmp_path, part):
    model = ViTForImageClassification(ViTConfig(image_size=32, patch_size=4, **TINY))
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith(part)}
    assert len(state) < len(model.state_dict())
    model.save_pretrained(tmp_path / "holey", state_dict=state)
    with pytest.raises(ValueError, match=rf"must hold all weights of a ViTModel, but {part} \(1 in all\) are missing"):
        load_model(str(tmp_path / "holey"))


def test_a_model_in_train_mode_is_measured_in_eval_mode_and_stays_as_it_is():
    torch.manual_seed(0)
    dropping = ViTModel(ViTConfig(image_size=32, patch_size=4, hidden_dropout_prob=0.5, **TINY)).train()
    images = torch.randn(4, 3, 32, 32)
    assert torch.equal(_feature(dropping, images), _feature(dropping, images))
    assert dropping.training
    assert all(module.training for module in dropping.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in dropping.modules())


def test_shuffled_images_of_the_hub_are_published_and_known_as_that_data_set(result, planted, tmp_path):
    source = DataSource(repo_id="org/images", split="train", seed=3)
    shuffled = dataclasses.replace(result, provenance=dataclasses.replace(result.provenance, source=source))
    published = calibration_without_local_names(shuffled)
    assert published.provenance.source == source
    patched = add_test_time_registers(planted.model, result)
    save_checkpoint(patched, tmp_path / "checkpoint", calibration=shuffled)
    card = (tmp_path / "checkpoint" / "README.md").read_text(encoding="utf-8")
    assert "datasets:\n- org/images\n" in card
    assert "org/images (train), shuffled with seed 3" in card
    kept = read_calibration(tmp_path / "checkpoint").provenance.source
    assert kept.may_share_images_with(DataSource(repo_id="org/images", split="train"))
    assert not kept.may_share_images_with(DataSource(repo_id="org/images", split="test"))
    assert not kept.may_share_images_with(DataSource(repo_id="org/others", split="train"))


def test_the_map_pass_obeys_the_limit_that_other_passes_learned(planted, monkeypatch):
    sizes = []
    whole = Recorder.__call__

    def record(recorder, pixel_values):
        if len(pixel_values) > 2:
            raise torch.cuda.OutOfMemoryError
        sizes.append(len(pixel_values))
        return whole(recorder, pixel_values)

    monkeypatch.setattr(Recorder, "__call__", record)
    tower, limit = VisionTower.to_measure(planted.model), BatchLimit()
    patched = tower.patched([(neuron.layer, neuron.neuron) for neuron in planted.register_neurons])
    batches = [Batch(synthetic_images(8), tuple(range(8)))]
    found = map_changes(tower, patched, batches, detection_layer=4, limit=limit)
    assert max(sizes) == 2
    assert sum(sizes) == 16
    monkeypatch.setattr(Recorder, "__call__", whole)
    assert map_changes(tower, patched, batches, detection_layer=4, limit=BatchLimit()) == pytest.approx(found)


@dataclass(frozen=True)
class Brightness:
    """A task of somebody's own, by the documented protocol."""

    name: ClassVar[str] = "brightness"
    truths: ClassVar[tuple[str, ...]] = ()
    learns: ClassVar[bool] = False
    whole_images: ClassVar[bool] = False

    def scores(self, model, test, train) -> list[Scores]:
        tally = Tally()
        for batch, truths in test:
            for truth, image in zip(truths, batch.pixel_values, strict=True):
                tally.add("mean", truth.place, float(image.mean()))
        return tally.scores(test.processes)


def test_a_task_of_ones_own_stands_on_the_card(result, planted):
    data = [{"image": image} for image in synthetic_images(4)]
    patched = add_test_time_registers(planted.model, result)
    found = evaluate(patched, data, task=Brightness(), config=EvaluationConfig(resamples=10), source="four images")
    config = type(patched.config)(**patched.config.to_dict() | {"architectures": [type(patched).__name__]})
    card = model_card(config, result, evaluations=[found])
    assert "**brightness** on four images: 4 images" in str(card)
    assert "model-index" not in str(card)  # the Hub has no name for this metric


def test_a_condition_carries_its_own_interval(result, planted):
    patched = add_test_time_registers(planted.model, result)
    config = type(patched.config)(**patched.config.to_dict() | {"architectures": [type(patched).__name__]})
    lines = str(model_card(config, result)).splitlines()
    for check in result.verification.checks:
        interval = "" if check.interval is None else f"{check.interval[0]:.4f} to {check.interval[1]:.4f}"
        (line,) = (line for line in lines if line.startswith(f"| {check.name} |"))
        assert line == f"| {check.name} | {check.value:.4f} | {interval} | {check.bound:.4f} | passed |"
    ratio, drift = result.verification.checks[:2]
    assert ratio.interval[0] <= ratio.value <= ratio.interval[1]
    assert drift.interval[0] <= drift.value <= drift.interval[1]


def test_the_verb_leaves_what_the_library_leaves(result, planted, tmp_path):
    planted.model.save_pretrained(tmp_path / "base")
    result.save(tmp_path / "calibration")
    make_checkpoint(ModelSource(str(tmp_path / "base")), tmp_path / "library", calibration=result)
    calibration, output = tmp_path / "calibration", tmp_path / "verb"
    assert main(["apply", str(tmp_path / "base"), "--calibration", str(calibration), "--output", str(output)]) == 0
    files = [sorted(path.name for path in (tmp_path / name).rglob("*")) for name in ("library", "verb")]
    assert files[0] == files[1]


def test_named_images_say_where_they_come_from(planted):
    source = DataSource(repo_id="org/images", split="train")
    named = NamedImages(list(planted.sample), source)
    assert calibrate(planted.model, named, config=CalibrationConfig(num_images=4, top_k=1)).provenance.source == source
