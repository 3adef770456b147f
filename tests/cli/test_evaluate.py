"""`ttreg evaluate`."""

import json
import shutil

import numpy as np
import pytest
from benchmarks.composites import build_composites
from PIL import Image, ImageDraw

from ttreg_hf.cli.evaluate_options import _FIELDS, BoxFormat, TaskName
from ttreg_hf.evaluation.ground_truth import BOX_FORMATS
from ttreg_hf.evaluation.tasks import TASKS

from .conftest import run, succeed, without_waiting

FIGURES = ("base", "patched", "constant mode", "zeroed, not moved", "random neurons", "interpolated", "masked")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Composites of generated cut-outs on the bundled photographs."""
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    for name in ("red", "blue"):
        (folder / "cutouts" / name).mkdir(parents=True)
        for place in range(4):
            image = Image.new("RGBA", (64, 64))
            colour = (250, 30, 30, 255) if name == "red" else (30, 30, 250, 255)
            ImageDraw.Draw(image).polygon([tuple(each) for each in random.integers(0, 64, (5, 2))], fill=colour)
            image.save(folder / "cutouts" / name / f"{place}.png")
    build_composites(folder / "cutouts", folder / "set", num_train=16, num_test=8, size=112)
    return folder / "set"


@pytest.fixture(scope="module")
def own(checkpoint, tmp_path_factory):
    """The checkpoint, to be written to."""
    return shutil.copytree(checkpoint, tmp_path_factory.mktemp("own") / "checkpoint")


def test_the_command_line_knows_the_tasks_and_their_settings():
    """Its lists are its own, so that `--help` need not load the tasks."""
    assert {task.value for task in TaskName} == set(TASKS)
    assert {each.value for each in BoxFormat} == set(BOX_FORMATS)
    fields = {field for task in TASKS.values() for field in task.__dataclass_fields__}
    assert {field for names in _FIELDS.values() for field in names} <= fields


def test_evaluate_prints_rows_and_writes_them_into_the_checkpoint(own, data, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)  # of the terminal that the tests run in: a narrow one breaks rows
    settings = (
        "--feature",
        "key",
        "--feature",
        "out",
        "--layer",
        "-1",
        "--layer",
        "3",
        "--normalize",
        "--bias",
        "-0.5",
    )
    ended = succeed(
        "evaluate", own, "--task", "object-discovery", "--dataset", data, "--split", "test", *settings, "--seed", "3"
    )
    assert all(row in ended.out for row in FIGURES)
    assert "object-discovery on set (test): 8 images" in ended.out
    for label in ("key, layer 5", "key, layer 3", "out, layer 5", "out, layer 3"):
        assert f"CorLoc ({label}, cosine, bias -0.5)" in ended.out
    kept = json.loads((own / "evaluation.json").read_text())["evaluations"]
    assert [(each["task"], each["seed"]) for each in kept] == [("object-discovery", 3)]
    assert (kept[0]["source"]["local"], kept[0]["source"]["split"]) == ("set", "test")
    assert "**object-discovery** on a local folder (test)" in (own / "README.md").read_text(encoding="utf-8")
    assert str(data.parent) not in (own / "README.md").read_text(encoding="utf-8") + json.dumps(kept)

    again = succeed("evaluate", own, "--task", "segmentation", "--dataset", data, "--split", "test", "--json")
    told = json.loads(again.out)
    assert {(each["metric"], each["row"]) for each in told["figures"]} == {
        (metric, row) for metric in ("mIoU", "pixel accuracy", "mAP") for row in FIGURES
    }
    assert [str(own / name) for name in ("evaluation.json", "README.md")] == told["files"]
    assert len(json.loads((own / "evaluation.json").read_text())["evaluations"]) == 2


@pytest.mark.parametrize("task", ["segmentation-probe", "knn"])
def test_tasks_that_learn_take_two_splits(base, calibration, data, task, tmp_path):
    """A stock model with `--calibration`; the results go to `--output`."""
    splits = ("--dataset", data, "--train-split", "train", "--split", "test")
    more = ("--epochs", "1") if task == "segmentation-probe" else ()
    ended = succeed(
        "evaluate", base, "--task", task, *splits, *more, "--calibration", calibration, "--output", tmp_path, "--json"
    )
    told = json.loads(ended.out)
    assert (told["num_images"], told["num_training_images"]) == (8, 16)
    assert told["files"] == [str(tmp_path / "evaluation.json")]
    assert not (base / "evaluation.json").exists()


def test_rows_are_chosen_by_name_and_one_that_cannot_be_is_refused(base, checkpoint, calibration, data, tmp_path):
    task = ("--task", "segmentation", "--dataset", data, "--split", "test", "--output", tmp_path)
    rows = ("--row", "interpolated", "--row", "patched")
    told = json.loads(succeed("evaluate", base, *task, *rows, "--calibration", calibration, "--json").out)
    assert {each["row"] for each in told["figures"]} == {"base", "patched", "interpolated"}
    assert told["threshold"]["image_size"] == [112, 112]

    found = succeed("evaluate", checkpoint, *task, "--row", "interpolated", "--image-size", "56")
    assert "images have another size, which may need another threshold" in found.err + found.out
    assert "as calibrated at 112 x 112 px" in found.out

    alone = shutil.copytree(checkpoint, tmp_path / "alone")
    (alone / "calibration.json").unlink()
    ended = succeed("evaluate", alone, *task)
    assert "left out: interpolated, masked: outliers are told by" in ended.err + ended.out
    assert "Outlier patches of interpolated" not in ended.out
    assert "No figure here is a primary endpoint" in ended.out
    refused = run("evaluate", alone, *task, *rows)
    assert refused.code == 1
    assert "The row 'interpolated' cannot be measured: outliers are told by" in refused.err
    assert run("evaluate", base, *task, "--row", "hidden").code == 2


def test_original_sizes_go_one_by_one(checkpoint, data, tmp_path):
    arguments = ("--dataset", data, "--split", "test", "--image-size", "original", "--output", tmp_path, "--json")
    told = json.loads(succeed("evaluate", checkpoint, "--task", "segmentation", *arguments).out)
    assert (told["image_size"], told["num_images"]) == ("original", 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--task", "depth"), "object-discovery"),
        (("--task", "knn"), "the task knn learns from one split and is measured on another"),
        (("--task", "knn", "--split", "test", "--train-split", "test"), "learns from one split"),
        (("--task", "segmentation", "--feature", "key"), "the task segmentation has no such setting"),
        (("--task", "segmentation", "--train-split", "train"), "the task segmentation does not learn"),
        (("--task", "segmentation", "--boxes-column", "boxes"), "the task segmentation reads no boxes"),
        (("--task", "object-discovery", "--mask-column", "mask"), "the task object-discovery reads no mask"),
        (("--task", "zero-shot", "--box-format", "xywh"), "the task zero-shot reads no boxes"),
        (("--task", "segmentation", "--image-size", "big"), "`image_size` is a number of pixels"),
        (
            ("--task", "token-probe", "--split", "test", "--train-split", "train", "--layer", "1", "--layer", "2"),
            "takes one layer",
        ),
    ],
)
def test_wrong_usage_exits_2_before_anything_is_loaded(arguments, message, data):
    ended = run("evaluate", "nosuch/model", "--dataset", data, *arguments)
    assert ended.code == 2
    assert message in " ".join(ended.err.replace("│", " ").split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--task", "segmentation", "--mask-column", "gt"), "got 'gt' among image, mask, boxes, label"),
        (("--task", "zero-shot"), "needs a model with a text tower, got Dinov2TTRegModel"),
        (("--task", "segmentation", "--image-size", "100"), "multiple of the model's patch size 14 x 14"),
        (("--task", "segmentation", "--split", "nosuch"), "`--split` is one of"),
        (("--task", "segmentation", "--config", "large"), "`--config` chooses in a data set, got 'large'"),
        (
            ("--task", "object-discovery", "--layer", "9"),
            "`--layer` is a layer from -6 to 5 (this model has 6 blocks), got 9",
        ),
    ],
)
def test_what_cannot_be_measured_exits_1_with_one_message(checkpoint, data, arguments, message, tmp_path):
    ended = run("evaluate", checkpoint, "--dataset", data, "--output", tmp_path, *arguments)
    assert ended.code == 1
    assert message in ended.err
    assert len(without_waiting(ended.err).splitlines()) <= 2
    assert list(tmp_path.iterdir()) == []


def test_quantised_models_are_measured_with_the_calibrated_outliers(own, data):
    split = ("--train-split", "train", "--split", "test", "--num-calibration-images", 4)
    given = ("--task", "quantisation", "--dataset", data, *split)
    ended = succeed("evaluate", own, *given, "--scheme", "int8 static, maximum", "--json")
    found = json.loads(ended.out)
    calibration = json.loads((own / "calibration.json").read_text())
    assert found["settings"]["norm_threshold"] == pytest.approx(calibration["norms"]["norm_threshold"])
    assert found["settings"]["detection_layer"] == calibration["norms"]["detection_layer"]
    metrics = {(each["metric"], each["row"]): each["value"] for each in found["figures"] if "int8" in each["setting"]}
    assert metrics["error, ordinary patches", "patched"] > 0
    assert metrics["error, ordinary patches", "base, its worst linear layers in 16 bit"] > 0
    card = (own / "README.md").read_text(encoding="utf-8")
    assert "Simulated, by rounding: int8 static, maximum. By torchao's kernels: none." in card
    assert "error, ordinary patches, int8 static, maximum: patched" in card
    for wrong in (("--scheme", "int2"), ("--also", "depth"), ("--neighbours", "3")):
        assert run("evaluate", own, *given, *wrong).code == 2
