"""A position table with spikes, from `ttreg calibrate` to a checkpoint that is verified, drawn and shown."""

import json
import shutil

from ttreg_hf.images.photographs import photograph_paths

from .conftest import succeed

MOVED = "3 spikes of the position table"
PLACES = [[1, 0], [1, 7], [6, 0]]


def test_every_verb_takes_spikes_and_says_so(spiked, pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(photograph_paths()[0], "my.jpg")
    out = " ".join(succeed("calibrate", spiked, "--output", "found", "--dataset", pictures).out.split())
    assert f"verdict: fixed ({MOVED.removeprefix('3 ')} found, and moving them to the register works)" in out
    assert f"moved: {MOVED}" in out
    assert "Next: ttreg apply" in out
    report = (tmp_path / "found" / "report.html").read_text()
    assert "spikes of the position table" in report
    assert "another mechanism" not in report

    assert (
        f"{MOVED} of {spiked} (found, verdict fixed)"
        in succeed("apply", spiked, "--calibration", "found", "--output", "ck").out
    )
    config = json.loads((tmp_path / "ck" / "config.json").read_text())
    assert (sorted(config["fixed_positions"]), config["register_neurons"]) == (PLACES, [])
    card = " ".join((tmp_path / "ck" / "README.md").read_text().split())
    assert f"**No weight: {MOVED}.** What spikes of the learned position table have over the rows around them" in card
    assert "the activation goes" not in card

    verified = succeed("verify", "ck", "--dataset", pictures).out
    assert f"moved: {MOVED}" in verified
    assert "verdict: fixed" in verified
    succeed("visualize", "ck", "my.jpg", "--output", "drawn")
    succeed("demo", "ck", "my.jpg", "--output", "page")
    page = (tmp_path / "page" / "index.html").read_text()
    assert "The same places in every picture" in page
    assert "Which neurons write it" not in page
