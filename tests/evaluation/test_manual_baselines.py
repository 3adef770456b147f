"""The rows `interpolated` and `masked` of an evaluation: what they do, and when there are none."""

import copy
import dataclasses

import pytest
import torch

from ttreg_hf import CalibrationConfig, EvaluationConfig, add_test_time_registers, calibrate, evaluate
from ttreg_hf.evaluation.evaluation_result import CalibratedThreshold, Evaluation
from ttreg_hf.evaluation.manual_baselines import manual_baselines
from ttreg_hf.evaluation.object_discovery import ObjectDiscovery
from ttreg_hf.evaluation.segmentation_probe import SegmentationProbe
from ttreg_hf.planted import planted_model
from ttreg_hf.report.evaluation_table import endpoint_sentence, evaluation_table

from .scenes import pixels_of, scenes

BY_HAND = ("interpolated", "masked")
CONFIG = EvaluationConfig(resamples=20, batch_size=4)
DISCOVERY = ObjectDiscovery(features=("key", "out"), biases=(0.0, -0.5))
TASKS = {
    "object-discovery": DISCOVERY,
    "segmentation": "segmentation",
    "segmentation-probe": SegmentationProbe(epochs=2, images_per_step=4),
}


@pytest.fixture(scope="module")
def examples():
    return scenes(8)


@pytest.fixture(scope="module")
def planted():
    return planted_model(trigger="low_information", images=pixels_of(scenes(16)), outlier_fraction=0.045)


@pytest.fixture(scope="module")
def result(planted):
    images = pixels_of(scenes(24, seed=5))
    config = CalibrationConfig(
        num_images=24, top_k=2, last_layer=2, norm_threshold=planted.norm_threshold, detection_layer=4
    )
    return calibrate(planted.model, images, config=config)


@pytest.fixture(scope="module")
def quiet(result):
    """The same calibration with a threshold that no patch is above."""
    return dataclasses.replace(result, norms=dataclasses.replace(result.norms, norm_threshold=1e9))


def _figures(found: Evaluation, row: str) -> list[tuple]:
    return [(each.metric, each.setting, each.value, each.low, each.high) for each in found.figures if each.row == row]


@pytest.mark.parametrize("task", TASKS)
def test_without_outliers_both_rows_are_the_base_model(planted, quiet, examples, task):
    found = evaluate(
        planted.model,
        examples,
        task=TASKS[task],
        train=scenes(8, seed=1),
        register_neurons=planted.register_neurons,
        calibration=quiet,
        config=CONFIG,
    )
    assert found.rows == ("base", "patched", "constant mode", "zeroed, not moved", "random neurons", *BY_HAND)
    assert _figures(found, "interpolated") == _figures(found, "masked") == _figures(found, "base")
    assert _figures(found, "patched") != _figures(found, "base")


def test_they_are_measured_with_the_calibrations_threshold_and_block(planted, result, examples):
    before = {name: value.clone() for name, value in planted.model.state_dict().items()}
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in planted.model.modules()]
    found = evaluate(planted.model, examples, task="segmentation", register_neurons=result, config=CONFIG)
    assert (found.threshold, found.left_out) == (CalibratedThreshold(planted.norm_threshold, 4, (112, 112)), {})
    assert all(_figures(found, row) != _figures(found, "base") for row in BY_HAND)
    assert all(torch.equal(planted.model.state_dict()[name], value) for name, value in before.items())
    assert hooks == [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in planted.model.modules()]
    assert Evaluation.from_dict(found.to_dict()) == found


@pytest.mark.parametrize("task", TASKS)
def test_every_dense_task_reads_mended_patches(planted, result, examples, task):
    config = dataclasses.replace(CONFIG, rows=("interpolated",))
    options = {"task": TASKS[task], "train": scenes(8, seed=1), "register_neurons": result, "config": config}
    found = evaluate(planted.model, examples, **options)
    assert _figures(found, "interpolated") != _figures(found, "base")


def test_attention_without_the_sink_shows_the_object_again(planted, result):
    found = evaluate(planted.model, scenes(24), task="segmentation", register_neurons=result)
    miou = {figure.row: figure for figure in found.figures if figure.metric == "mIoU"}
    for row in BY_HAND:
        assert miou[row].difference.low > 0
    for row in (*BY_HAND, "zeroed, not moved", "random neurons"):
        difference = miou[row].patched_minus
        assert difference.value == pytest.approx(miou["patched"].value - miou[row].value)
        assert difference.low <= difference.value <= difference.high
    assert miou["base"].patched_minus is miou["patched"].patched_minus is None
    assert miou["random neurons"].patched_minus.low > 0


def test_one_endpoint_is_primary_and_marked_in_file_and_table(planted, result, examples):
    def primary(task, **options):
        found = evaluate(planted.model, examples, task=task, register_neurons=result, config=CONFIG, **options)
        marked = {each.label for each in found.figures if each.endpoint == "primary"}
        assert {each["endpoint"] for each in found.to_dict()["figures"]} <= {"primary", "exploratory"}
        shown = {line[0] for line in evaluation_table(found).rows if line[0]}
        assert shown == {each.label for each in found.figures}
        assert all(label.endswith((", primary", ", exploratory")) for label in shown)
        told = endpoint_sentence(found)
        if not marked:
            assert told.startswith("No figure here is a primary endpoint: all are exploratory")
        else:
            assert told.startswith(f"{marked.copy().pop()}: patched minus base ")
            assert all(f", {row} " in told for row in found.rows if row not in ("base", "patched"))
        return marked

    base_only = dataclasses.replace(CONFIG, rows=())
    assert primary(DISCOVERY) == {"CorLoc (key, layer 5, dot product, bias 0), primary"}
    assert primary(TASKS["segmentation-probe"], train=examples) == {"mIoU, primary"}
    assert primary("segmentation") == primary("knn", train=examples) == set()
    others = ObjectDiscovery(features=("key",), layers=(-2, -1), normalize=(True,))
    assert evaluate(planted.model, examples, task=others, register_neurons=result, config=base_only).rows == ("base",)
    assert primary(others) == set()


def test_only_the_rows_asked_for_are_measured(planted, result, examples):
    config = dataclasses.replace(CONFIG, rows=("masked", "patched"))
    found = evaluate(planted.model, examples, task=DISCOVERY, register_neurons=result, config=config)
    assert found.rows == ("base", "patched", "masked")
    with pytest.raises(ValueError, match=r"`rows` are some of base; patched; .*; got 'mask'"):
        EvaluationConfig(rows=("mask",))
    config = dataclasses.replace(CONFIG, rows=("trained registers",))
    with pytest.raises(ValueError, match="The row 'trained registers' cannot be measured: no model with trained"):
        evaluate(planted.model, examples, task=DISCOVERY, register_neurons=result, config=config)


@pytest.mark.parametrize("calibration", ["none", "of other weights", "beside other weights"])
def test_without_a_calibration_of_these_weights_they_are_left_out_with_one_sentence_or_refused(
    planted, result, examples, calibration
):
    model, found_before = planted.model, None if calibration == "none" else result
    if calibration == "of other weights":
        model = copy.deepcopy(model)
        torch.nn.init.normal_(model.layernorm.weight)
        model.encoder.layer[0].norm1.weight.data += 1
    if calibration == "beside other weights":
        found_before = dataclasses.replace(result, on_other_weights=True)
    options = {"task": DISCOVERY, "register_neurons": planted.register_neurons, "calibration": found_before}
    said: list[str] = []
    found = evaluate(model, examples[:2], config=CONFIG, say=said.append, **options)
    assert found.rows == ("base", "patched", "zeroed, not moved", "random neurons")
    assert said == [
        "left out: interpolated, masked: outliers are told by the threshold and block of a calibration of these "
        "weights; give one (`--calibration`)"
    ]
    assert (found.threshold, tuple(found.left_out)) == (None, BY_HAND)
    config = dataclasses.replace(CONFIG, rows=("masked",))
    with pytest.raises(ValueError, match="The row 'masked' cannot be measured: outliers are told by"):
        evaluate(model, examples[:2], config=config, **options)


def test_what_cannot_be_is_left_out_with_its_reason(planted, result):
    last = dataclasses.replace(result, norms=dataclasses.replace(result.norms, detection_layer=5))
    found = manual_baselines(planted.model, last)
    assert set(found.rows) == {"interpolated"}
    assert "after block 5, the last" in found.left_out["masked"]


def test_a_task_that_reads_no_patches_has_no_such_rows(planted, result, examples):
    options = {"task": "knn", "train": examples, "register_neurons": result}
    said: list[str] = []
    found = evaluate(planted.model, examples, config=CONFIG, say=said.append, **options)
    assert set(BY_HAND).isdisjoint(found.rows)
    assert (said, found.left_out, found.threshold) == ([], {}, None)
    config = dataclasses.replace(CONFIG, rows=("interpolated",))
    with pytest.raises(ValueError, match="The row 'interpolated' cannot be measured: the task knn reads no patches"):
        evaluate(planted.model, examples, config=config, **options)


def test_a_checkpoint_folder_brings_its_calibration(planted, result, examples, tmp_path):
    patched = add_test_time_registers(planted.model, result)
    patched.save_pretrained(tmp_path)
    result.save(tmp_path)
    found = evaluate(tmp_path, examples[:2], task=DISCOVERY, config=CONFIG)
    assert set(BY_HAND) < set(found.rows)
