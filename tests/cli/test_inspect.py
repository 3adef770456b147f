"""`ttreg inspect`."""

import json
import shutil

import pytest

from ttreg_hf.images.photographs import photograph_paths

from .conftest import NORM_THRESHOLD, run, succeed, without_waiting


def test_inspect_marks_the_detection_block_and_where_outliers_begin(base):
    out = succeed("inspect", base, "--norm-threshold", NORM_THRESHOLD).out
    assert "images: the bundled photographs (7)" in out
    rows = {line.split()[0]: line for line in out.splitlines() if line.split() and line.split()[0].isdecimal()}
    assert "outliers begin" in rows["2"]
    assert "detection block" in rows["4"]
    assert f"Next: ttreg calibrate {base} --output" in out


def test_inspect_as_json_is_the_norm_report(base):
    ended = succeed(
        "inspect", base, "--json", "--num-images", "3", "--norm-threshold", "60", "--detection-layer", "-1"
    )
    found = json.loads(ended.out)
    assert (found["num_images"], found["norm_threshold"], found["detection_layer"]) == (3, 60, 5)
    assert found["first_outlier_layer"] == 2
    assert len(found["max"]) == 6
    assert without_waiting(ended.err) == "images: the bundled photographs (3)\n"


def test_inspect_says_when_there_is_nothing_to_do(base):
    out = succeed("inspect", base, "--norm-threshold", "1e6").out
    assert "No outlier tokens seen in 7 photographs" in out
    assert "At 95 %, fewer than 34.8 % of such photographs have one" in out
    assert "Next: look at 29 photographs or more" in out
    assert "outliers begin" not in out


def test_inspect_says_one_thing_in_table_sentence_json_and_next_step(base, pictures):
    """Clear outliers, an ordinary spread that a low threshold cuts, and nothing."""
    for threshold, shows in ((NORM_THRESHOLD, True), (None, True), (1e6, False)):
        options = ["inspect", base, "--dataset", pictures, *(["--norm-threshold", threshold] if threshold else [])]
        out, found = succeed(*options).out, json.loads(succeed(*options, "--json").out)
        assert found["shows_outliers"] is shows
        assert ("outliers begin" in out) is shows
        assert (found["first_outlier_layer"] is not None) is shows
        assert any(found["outlier_fraction"]) is shows
        assert ("have outlier tokens there" in out) is shows
        assert ("Next: ttreg calibrate" in out) is shows
        assert ("Next: nothing to do." in out) is not shows
        assert f"Next: {found['next']}" in out
        assert all(p999 <= largest for p999, largest in zip(found["p999"], found["max"], strict=True))


def test_inspect_recommends_nothing_where_the_largest_norm_is_an_ordinary_one(quiet, pictures):
    """A threshold may be given that cuts into the ordinary norms."""
    norms = json.loads(succeed("inspect", quiet, "--dataset", pictures, "--json").out)
    block = norms["detection_layer"]
    assert norms["max"][block] < 1.5 * norms["median"][block]
    threshold = 0.5 * (norms["median"][block] + norms["max"][block])
    ended = succeed("inspect", quiet, "--dataset", pictures, "--norm-threshold", threshold)
    assert "exceed it, but the largest norm is 1." in ended.out
    assert "an ordinary spread, not outlier tokens" in ended.out
    assert "outliers begin" not in ended.out
    assert "Next: nothing to do." in ended.out


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_inspect_takes_images_of_the_user(base, tmp_path, kind):
    for path in photograph_paths()[:2]:
        shutil.copy(path, tmp_path)
    dataset = tmp_path if kind == "folder" else tmp_path / photograph_paths()[0].name
    found = json.loads(succeed("inspect", base, "--dataset", dataset, "--json").out)
    assert found["num_images"] == (2 if kind == "folder" else 1)
    assert found["images"] == str(dataset)


def test_inspect_runs_in_the_number_format_asked_for(base):
    exact = json.loads(succeed("inspect", base, "--json").out)["median"]
    rounded = json.loads(succeed("inspect", base, "--json", "--dtype", "bfloat16", "--device", "cpu").out)["median"]
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.05)


def test_inspect_says_that_a_few_images_may_miss_outliers(base):
    out = succeed("inspect", base, "--num-images", "2").out
    assert "show no outlier tokens in 2 photographs" in out
    assert "At 95 %, fewer than 77.6 % of such photographs have one" in out
    assert "Next: look at 29 photographs or more" in out


def test_inspect_writes_its_norms_and_their_pictures(base, tmp_path):
    arguments = ("inspect", base, "--norm-threshold", NORM_THRESHOLD, "--output", tmp_path / "norms")
    found = json.loads(succeed(*arguments, "--json").out)
    names = ["norms.json", "norms.png", "populations.png", "positions.png"]
    assert found["files"] == [str(tmp_path / "norms" / name) for name in names]
    assert sorted(path.name for path in (tmp_path / "norms").glob("[!.]*")) == names
    written = json.loads((tmp_path / "norms" / "norms.json").read_text())
    assert (written["model"], written["max"]) == (str(base), found["max"])
    for name in names[1:]:
        assert (tmp_path / "norms" / name).read_bytes()[:4] == b"\x89PNG"
    ended = run(*arguments)
    assert ended.code == 1
    assert "exists and is not empty" in ended.err
    assert f"wrote {tmp_path / 'norms' / 'norms.png'}" in succeed(*arguments, "--overwrite").out


def test_inspect_names_the_places_that_are_the_same_in_every_image_and_their_source(spiked):
    out = succeed("inspect", spiked).out
    assert "same 3 places in every image (row, column of 8 x 8): (1, 0), (1, 7), (6, 0)." in " ".join(out.split())
    assert "Their source: the position table, channel 58 carries 82%." in " ".join(out.split())
    assert "show no others in 7 photographs" in " ".join(out.split())
    assert f"Next: ttreg calibrate {spiked} --output CALIBRATION  # what makes those at the same places" in out
    found = json.loads(succeed("inspect", spiked, "--json").out)["positions"]
    assert [source["stage"] for source in found["sources"]] == ["position table"]
    assert len(found["maps"][0]["shares"]) == 1 + 10  # embeddings and blocks
