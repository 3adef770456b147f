"""The whole chain, on independent pictures, and what it may say."""

import json

import numpy as np

from ttreg_hf.images.scenes import draw_scene, draw_scenes
from ttreg_hf.quickstart import run_quickstart


def test_quickstart_finds_what_was_planted_on_pictures_that_no_stage_had_seen(tmp_path):
    said: list[str] = []
    found = run_quickstart(tmp_path / "q", say=said.append)
    assert found["verdict"] == "fixed"
    assert found["found"] == found["planted"]
    verification = found["calibration"]["verification"]
    assert verification["num_photographs"] == verification["num_images"] == 8
    assert not verification["in_sample"]
    assert verification["feature_similarity_interval"] is not None
    assert found["calibration"]["provenance"]["source"]["description"].endswith("photographs and 41 drawn scenes")
    assert verification["zeroing_passes"] == any("moving was not shown to be needed" in line for line in said)
    saved = json.loads((tmp_path / "q" / "checkpoint" / "calibration.json").read_text())
    assert saved["on_other_weights"] is False


def test_scenes_are_independent_and_the_same_on_every_machine():
    scenes = [np.asarray(scene).astype(int) for scene in draw_scenes(4)]
    assert all(scene.shape == (256, 256, 3) for scene in scenes)
    assert np.array_equal(scenes[3], np.asarray(draw_scene(3)))
    assert all(np.abs(one - other).mean() > 20 for at, one in enumerate(scenes) for other in scenes[:at])
    small = np.asarray(draw_scene(3, size=64))
    assert small.shape == (64, 64, 3)
