"""`scripts/grown_artifacts.py --composites`, from a grown checkpoint to the tables, on a CPU."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from benchmarks import grown as command
from benchmarks.composites import build_composites
from benchmarks.grown_dense_tasks import CAPTION, COLUMNS, GROWN, NAMED, ORIGINAL, TASKS, dense_tables
from benchmarks.grown_variants import VARIANTS
from PIL import Image, ImageDraw
from transformers import BitImageProcessorPil

from ttreg_hf.calibration.calibration_result import CalibrationResult
from ttreg_hf.evaluation.evaluation_result import Evaluation

from .conftest import SIZE, TINY

COUNTS = {"num_train": 12, "num_test": 8}


def _pictures(textures, folder: Path) -> None:
    folder.mkdir(parents=True)
    for place, image in enumerate(textures):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{place:02}.jpg", quality=100, subsampling=0)


def _composites(folder: Path, backgrounds: Path) -> None:
    random = np.random.default_rng(0)
    for name, colour in (("red", (250, 30, 30, 255)), ("blue", (30, 30, 250, 255))):
        (folder / "cutouts" / name).mkdir(parents=True)
        for place in range(4):
            image = Image.new("RGBA", (64, 64))
            ImageDraw.Draw(image).polygon([tuple(each) for each in random.integers(0, 64, (5, 2))], fill=colour)
            image.save(folder / "cutouts" / name / f"{place}.png")
    build_composites(folder / "cutouts", folder / "composites", backgrounds=str(backgrounds), size=SIZE, **COUNTS)


@pytest.fixture(scope="module")
def done(grown, textures, tmp_path_factory) -> Path:
    """The folder that the command leaves, started where growing has ended."""
    folder = tmp_path_factory.mktemp("grown")
    side = {"height": SIZE, "width": SIZE}
    grown.original.save_pretrained(folder / "base")
    for place in (folder / "base", folder / "output" / "tiny-0" / command.CHECKPOINT):
        BitImageProcessorPil(size={"shortest_edge": SIZE}, crop_size=side).save_pretrained(place)
    grown.grown.save_pretrained(folder / "output" / "tiny-0" / command.CHECKPOINT)
    for split, part in (("calibrate", textures[:48]), ("report", textures[48:])):
        _pictures(part, folder / "photographs" / split)
    _composites(folder, folder / "photographs" / "report")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(VARIANTS, "tiny", dataclasses.replace(TINY, expected=("fixed", "unresolved")))
        patch.setattr(command, "_run_all", lambda jobs, processes: [command.run_job(job) for job in jobs])
        command.grown_artifacts(
            folder / "base",
            folder / "photographs",
            folder / "output",
            composites=folder / "composites",
            variant=["tiny"],
            seed=[0],
            num_images=64,
            device="cpu",
        )
    return folder / "output"


def test_all_rows_are_measured_at_the_calibrated_size_and_of_the_original_its_own(done):
    found = json.loads((done / "tiny-0" / command.DENSE_FILE).read_text(encoding="utf-8"))
    threshold = CalibrationResult.load(done / "tiny-0" / command.CALIBRATION).norms.norm_threshold
    for kind, rows in ((ORIGINAL, ("base",)), (GROWN, tuple(COLUMNS))):
        evaluations = [Evaluation.from_dict(each) for each in found[kind]]
        assert tuple(each.task for each in evaluations) == TASKS
        for each in evaluations:
            assert (each.rows, each.image_size, each.left_out) == (rows, SIZE, {})
            assert (each.num_images, each.num_training_images) in ((8, 12), (8, 0))
            assert (each.threshold is None) if kind == ORIGINAL else (each.threshold.norm_threshold == threshold)


def test_the_tables_put_the_primary_endpoints_first_and_say_each_time_that_we_trained_the_artifacts_in(done):
    text = (done / command.DENSE_TABLE_FILE).read_text(encoding="utf-8")
    assert text == dense_tables({"tiny, 0": done / "tiny-0" / command.DENSE_FILE})
    first, second = text.split(NAMED["exploratory"])
    assert first.startswith(NAMED["primary"])
    assert first.count(CAPTION) == second.count(CAPTION) == 1
    primary, others = (
        [line for line in part.splitlines() if line.startswith("| tiny, 0 |")] for part in (first, second)
    )
    assert [line.split(" | ")[1] for line in primary] == [
        "segmentation-probe: mIoU, primary",
        "object-discovery: CorLoc (key, layer 9, dot product, bias 0), primary",
    ]
    assert len(others) == 1 + 7 + 3
    assert all("exploratory" in line and len(line.split(" | ")) == 3 + len(COLUMNS) + 2 for line in others)
    assert "left out" not in text


def test_a_row_that_could_not_be_measured_is_left_out_with_its_reason(done, tmp_path):
    found = json.loads((done / "tiny-0" / command.DENSE_FILE).read_text(encoding="utf-8"))
    for evaluation in found[GROWN]:
        evaluation["figures"] = [each for each in evaluation["figures"] if each["row"] != "masked"]
        evaluation["left_out"] = {"masked": "the last block"}
    (tmp_path / "found.json").write_text(json.dumps(found), encoding="utf-8")
    text = dense_tables({"tiny, 0": tmp_path / "found.json"})
    assert text.endswith("tiny, 0: no row masked: the last block.\n")
    assert all("| left out | " in line for line in text.splitlines() if line.startswith("| tiny, 0 |"))
