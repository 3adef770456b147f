"""What is said of a real model without outliers, a fine-tuned derivative of DINOv2-S: verdicts as observed."""

import json

import pytest
from cli.conftest import run, succeed
from transformers import PreTrainedModel

from ttreg_hf import CalibrationConfig, inspect_norms
from ttreg_hf.evaluation.whole_image import whole_image
from ttreg_hf.loading import load_processor
from ttreg_hf.measuring.tower import VisionTower

pytestmark = pytest.mark.real
HIGHEST = 2.5  # largest over median patch norm that was seen at any block, 1.3 to 2.0, and room


def test_photographs_are_many_and_independent(photographs):
    found = {path.name: path.read_bytes() for path in photographs.rglob("*.jpg")}
    assert len(found) >= 64
    assert len(set(found.values())) == len(found)
    assert {path.name for path in photographs.glob("[!.]*")} == {"grow", "calibrate", "report", "LICENCES.md"}


def test_no_block_has_outliers_at_224_px(checkpoint, photographs):
    norms = json.loads(succeed("inspect", checkpoint, "--dataset", photographs, "--num-images", "24", "--json").out)
    assert max(high / middle for high, middle in zip(norms["max"], norms["median"], strict=True)) < HIGHEST
    assert norms["outlier_fraction"][norms["detection_layer"]] == 0


def test_it_is_clean_at_224_px_and_at_the_518_px_of_its_training_and_nothing_is_patched(
    checkpoint, photographs, tmp_path
):
    arguments = ("--dataset", photographs, "--num-images", "30", "--output", tmp_path / "found", "--json")
    found = json.loads(succeed("calibrate", checkpoint, *arguments).out)
    assert found["verdict"] == "clean"
    looks = [(look["image_size"], look["num_photographs"], look["with_outliers"]) for look in found["looks"]]
    assert looks == [([224, 224], 30, 0), ([518, 518], 30, 0)]
    refused = run("apply", checkpoint, "--calibration", tmp_path / "found", "--output", tmp_path / "checkpoint")
    assert refused.code == 3
    assert not (tmp_path / "checkpoint").exists()


def test_no_block_has_outliers_at_518_px(model: PreTrainedModel, checkpoint, photographs):
    processor = whole_image(VisionTower.of(model), load_processor(str(checkpoint)), 518)
    norms = inspect_norms(
        model, photographs / "calibrate", config=CalibrationConfig(num_images=6), processor=processor
    )
    assert max(high / middle for high, middle in zip(norms.max, norms.median, strict=True)) < HIGHEST
