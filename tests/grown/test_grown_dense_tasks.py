"""`scripts/grown_artifacts.py --composites`, from a grown checkpoint to the tables, on a CPU."""

import json

from benchmarks import grown as command
from benchmarks.grown_dense_tasks import CAPTION, COLUMNS, GROWN, NAMED, ORIGINAL, TASKS, dense_tables
from benchmarks.grown_steps import DENSE_TASKS

from ttreg_hf.calibration.calibration_result import CalibrationResult
from ttreg_hf.evaluation.evaluation_result import Evaluation

from .conftest import SIZE


def test_all_rows_are_measured_at_the_calibrated_size_and_of_the_original_its_own(done):
    found = json.loads((done / "tiny-0" / DENSE_TASKS.file).read_text(encoding="utf-8"))
    threshold = CalibrationResult.load(done / "tiny-0" / command.CALIBRATION).norms.norm_threshold
    measured = tuple(row for row in COLUMNS if row != "constant mode")  # it is not `fixed`
    for kind, rows in ((ORIGINAL, ("base",)), (GROWN, measured)):
        evaluations = [Evaluation.from_dict(each) for each in found[kind]]
        assert tuple(each.task for each in evaluations) == TASKS
        for each in evaluations:
            assert (each.rows, each.image_size) == (rows, SIZE)
            assert list(each.left_out) == [row for row in COLUMNS if kind == GROWN and row not in rows]
            assert (each.num_images, each.num_training_images) in ((8, 12), (8, 0))
            assert (each.threshold is None) if kind == ORIGINAL else (each.threshold.norm_threshold == threshold)


def test_the_tables_put_the_primary_endpoints_first_and_say_each_time_that_we_trained_the_artifacts_in(done):
    text = (done / DENSE_TASKS.table_file).read_text(encoding="utf-8")
    assert text == dense_tables({"tiny, 0": done / "tiny-0" / DENSE_TASKS.file})
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
    lines = [line for line in text.splitlines() if line.startswith("| tiny, 0 |")]
    assert text.count("tiny, 0: no row constant mode: the calibration, which is `unresolved`,") == 1
    assert all(line.count("left out") == 1 and line.split(" | ")[5] == "left out" for line in lines)


def test_a_row_that_could_not_be_measured_is_left_out_with_its_reason(done, tmp_path):
    found = json.loads((done / "tiny-0" / DENSE_TASKS.file).read_text(encoding="utf-8"))
    for evaluation in found[GROWN]:
        evaluation["figures"] = [each for each in evaluation["figures"] if each["row"] != "masked"]
        evaluation["left_out"] = {"masked": "the last block"}
    (tmp_path / "found.json").write_text(json.dumps(found), encoding="utf-8")
    text = dense_tables({"tiny, 0": tmp_path / "found.json"})
    assert text.endswith("tiny, 0: no row masked: the last block.\n")
    assert all("| left out | " in line for line in text.splitlines() if line.startswith("| tiny, 0 |"))
