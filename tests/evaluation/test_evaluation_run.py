"""A whole evaluation: rows, records, faults, and any number of processes."""

import dataclasses
import json

import pytest
import torch
from huggingface_hub import ModelCard
from launching import torchrun
from transformers import BitImageProcessorPil

from ttreg_hf import DataSource, EvaluationConfig, add_test_time_registers, evaluate
from ttreg_hf.evaluation.evaluation_result import read_evaluations, write_evaluation
from ttreg_hf.evaluation.object_discovery import ObjectDiscovery
from ttreg_hf.evaluation.segmentation_probe import SegmentationProbe
from ttreg_hf.known import packages
from ttreg_hf.planted import planted_model
from ttreg_hf.publishing import prepared_checkpoint, push
from ttreg_hf.publishing.card_in_folder import add_evaluation
from ttreg_hf.publishing.checkpoint import save_checkpoint
from ttreg_hf.publishing.published_files import checkpoint_files
from ttreg_hf.report.evaluation_table import card_results, evaluation_table

from .scenes import pixels_of, scenes

CONFIG = EvaluationConfig(resamples=50, batch_size=4)
SOURCE = DataSource(repo_id="org/scenes", split="test")
QUICK = ObjectDiscovery(features=("out", "key"), normalize=(True,), biases=(-0.5,))
TASKS = {
    "object-discovery": QUICK,
    "segmentation-probe": SegmentationProbe(epochs=2, images_per_step=4),
    "knn": "knn",
}


@pytest.fixture(scope="module")
def examples():
    return scenes(7)  # odd


@pytest.fixture(scope="module")
def patched(examples):
    planted = planted_model(trigger="low_information", images=pixels_of(scenes(16)), outlier_fraction=0.045)
    return add_test_time_registers(planted.model, planted.register_neurons)


@pytest.fixture(scope="module")
def found(patched, examples):
    return evaluate(patched, examples, task=QUICK, config=CONFIG, source=SOURCE)


def test_the_whole_sweep_is_kept_and_named(found):
    labels = [label for label, _ in found.by_label()]
    assert labels == [f"CorLoc ({each}, layer 5, cosine, bias -0.5), exploratory" for each in ("out", "key")]
    assert found.rows == ("base", "patched", "zeroed, not moved", "random neurons")
    assert (found.num_images, found.num_training_images, found.source) == (7, 0, SOURCE)
    assert found.settings["features"] == ["out", "key"]
    assert len(evaluation_table(found).rows) == 8


def test_a_model_with_trained_registers_is_one_more_row(patched, examples):
    trained = planted_model("dinov2_with_registers").model
    found = evaluate(patched, examples, task=QUICK, config=CONFIG, trained_registers=trained)
    assert found.rows[-1] == "trained registers"
    assert found.trained_registers == "planted-dinov2_with_registers"
    assert next(each for each in found.figures if each.row == "trained registers").difference is not None


def test_the_papers_figures_stand_beside_it_as_the_papers(found):
    of_large = dataclasses.replace(found, base_model="facebook/dinov2-large")
    extra = evaluation_table(of_large).rows[len(evaluation_table(found).rows) :]
    assert [line[0] for line in extra if line[0]] == [
        f"CorLoc on {name}, as arXiv 2506.08010 reports it" for name in ("VOC07", "VOC12", "COCO20k")
    ]
    assert [line[1:3] for line in extra[:3]] == [("base", "32.2"), ("patched", "53.8"), ("trained registers", "56.2")]


def test_the_file_keeps_one_entry_a_task_and_data_set(found, tmp_path):
    write_evaluation(tmp_path, found)
    write_evaluation(tmp_path, dataclasses.replace(found, source=DataSource(local="other")))
    newer = dataclasses.replace(found, created="later")
    write_evaluation(tmp_path, newer)
    assert [(each.source, each.created) for each in read_evaluations(tmp_path)] == [
        (DataSource(local="other"), found.created),
        (SOURCE, "later"),
    ]
    assert read_evaluations(tmp_path)[1] == newer
    assert read_evaluations(tmp_path / "nothing") == ()
    (tmp_path / "evaluation.json").write_text('{"evaluations": [{}]}')
    with pytest.raises(ValueError, match="must be what `ttreg evaluate` wrote"):
        read_evaluations(tmp_path)


def test_a_checkpoint_shows_it_on_its_card_and_when_it_is_pushed(found, patched, tmp_path, monkeypatch):
    folder = save_checkpoint(patched, tmp_path / "checkpoint")
    card = folder / "README.md"
    card.write_text(card.read_text(encoding="utf-8") + "\nWritten by its owner.\n", encoding="utf-8")
    found = dataclasses.replace(found, source=dataclasses.replace(SOURCE, revision="ab" * 20))
    add_evaluation(folder, found)
    add_evaluation(folder, dataclasses.replace(found, source=DataSource(local="scenes", split="test")))
    text = card.read_text(encoding="utf-8")
    assert "**object-discovery** on org/scenes (test): 7 images" in text
    assert "Written by its owner." in text
    assert "CorLoc (key, layer 5, cosine, bias -0.5), exploratory" in text
    assert text.count("No figure here is a primary endpoint") == 2
    assert text.count("## Evaluated") == 1
    results = ModelCard.load(card).data.eval_results
    patched_figures = [figure for figure in found.figures if figure.row == "patched"]
    assert [(each.dataset_type, each.metric_type, each.metric_value) for each in results] == [
        ("org/scenes", "corloc", round(100 * figure.value, 2)) for figure in patched_figures
    ]
    assert "evaluation.json" in checkpoint_files(folder)

    monkeypatch.setattr(prepared_checkpoint, "check_outputs", lambda folder, trust_remote_code: 0.0)  # takes a child
    prepared = prepared_checkpoint.prepare(folder, None, config_only=False, force=False, trust_remote_code=False)
    assert "evaluation.json" in prepared.contents
    assert len(push._card(prepared, "me/mine", None, ()).data.eval_results) == len(results)


@pytest.mark.parametrize(
    ("source", "fields"),
    [
        ({"revision": None}, {}),
        ({"split": None}, {}),
        ({"repo_id": None, "local": "scenes"}, {}),
        ({"repo_id": None, "description": "scenes"}, {}),
        ({}, {"whole_split": False}),
        ({}, {"hub_task": None}),
    ],
)
def test_only_whole_splits_at_a_revision_become_figures_of_the_hub(found, source, fields):
    pinned = dataclasses.replace(SOURCE, revision="ab" * 20)
    assert found.whole_split
    assert card_results(dataclasses.replace(found, source=pinned))
    other = dataclasses.replace(found, source=dataclasses.replace(pinned, **source), **fields)
    assert card_results(other) == []


def test_a_part_of_a_split_is_not_the_whole(patched, examples):
    def seen(data, num_images):
        config = EvaluationConfig(resamples=5, num_images=num_images)
        return evaluate(
            patched, data, task="knn", train=examples, config=config, processor=BitImageProcessorPil()
        ).whole_split

    assert [seen(examples, count) for count in (len(examples) - 1, len(examples))] == [False, True]


def test_local_paths_are_not_recorded(patched, examples, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    data = [*examples[:2], {"image": {"bytes": None, "path": str(broken)}, "label": 0}]
    config = EvaluationConfig(resamples=5, max_bad_share=0.5)
    source = DataSource(local=f"{tmp_path}/mine", split="test")
    found = evaluate(
        patched, data, task="knn", train=examples, config=config, processor=BitImageProcessorPil(), source=source
    )
    assert (str(found.source), found.num_images, found.bad_images) == ("mine (test)", 2, ("broken.jpg",))
    assert str(tmp_path) not in json.dumps(found.to_dict())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "depth"}, "`task` is one of object-discovery, segmentation, .* got 'depth'"),
        ({"task": "knn"}, r"The task knn learns from training images, got none. Give `train` \(`--train-split`\)"),
        ({"task": "segmentation", "columns": None, "data": [{"image": torch.zeros(3, 112, 112), "label": 0}]}, "mask"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_any_image_is_read(patched, examples, options, message):
    data = options.pop("data", examples)
    with pytest.raises(ValueError, match=message):
        evaluate(patched, data, config=CONFIG, **options)


def test_masks_without_foreground_are_nothing_to_measure(patched, examples):
    empty = [dict(example, mask=0 * example["mask"]) for example in examples[:2]]
    with pytest.raises(ValueError, match="The task segmentation found nothing to measure"):
        evaluate(patched, empty, task="segmentation", config=CONFIG)


def test_classes_that_were_not_learned_are_refused(patched, examples):
    other = [dict(example, mask=7 * example["mask"]) for example in examples[:2]]
    with pytest.raises(ValueError, match=r"Masks hold classes from 0 to 1, but image 0 has 7\. Give `num_classes`"):
        evaluate(patched, other, task=TASKS["segmentation-probe"], train=examples[:2], config=CONFIG)


@pytest.mark.parametrize(
    ("field", "value"), [("num_images", 0), ("batch_size", 0), ("confidence", 1.0), ("image_size", "small")]
)
def test_settings_are_checked(field, value):
    with pytest.raises(ValueError, match=f"`{field}` is .* got '?{value}'?"):
        EvaluationConfig(**{field: value})


def test_missing_packages_are_named_once(monkeypatch, patched, examples):
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None if name == "sklearn" else object())
    with pytest.raises(
        ImportError, match=r"missing here: scikit-learn\. Install them with `pip install scikit-learn`"
    ):
        evaluate(patched, examples, task="knn", train=examples)


def measure(patched, accelerator=None):
    """All tasks of `TASKS`; what two processes are compared by."""
    data, train = scenes(7), scenes(9, seed=1)
    return {
        name: evaluate(patched, data, task=task, train=train, config=CONFIG, accelerator=accelerator).to_dict()
        for name, task in TASKS.items()
    }


def test_two_processes_find_what_one_finds(patched, tmp_path):
    patched.save_pretrained(tmp_path / "model")
    ended = torchrun(2, "evaluation.launched", tmp_path)
    assert ended.returncode == 0, ended.stderr[-3000:]
    by_two, alone = json.loads((tmp_path / "found.json").read_text()), measure(patched)
    assert by_two.pop("processes") == 2
    assert "processes 0 and 1 differ in images" in by_two.pop("refused")
    for name, found in alone.items():
        for one, two in zip(found["figures"], by_two[name]["figures"], strict=True):
            assert (one["metric"], one["setting"], one["row"]) == (two["metric"], two["setting"], two["row"])
            for field in ("value", "low", "high"):
                assert one[field] == pytest.approx(two[field], abs=2e-3)  # sums in another order
