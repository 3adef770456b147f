"""The report: everything is in it, it needs nothing from outside, and nothing from outside becomes markup."""

import base64
import dataclasses
import html
import json
import re
import shutil

import pytest

from ttreg_hf.calibration.calibration_result import CalibrationResult
from ttreg_hf.images.data_source import DataSource
from ttreg_hf.pictures.numbers import short_number
from ttreg_hf.report.calibration_folder import write_report
from ttreg_hf.report.page import render_page
from ttreg_hf.report.switch_data import switch_data
from ttreg_hf.report.switch_file import SWITCH_FILE

EVIL = "</script><script>alert(1)</script>"


@pytest.fixture
def page(reported):
    return (reported.folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture
def copy(reported, tmp_path):
    return shutil.copytree(reported.folder, tmp_path / "copy")


def text_of(page):
    """What a reader sees."""
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page)))


def test_page_shows_the_evidence(reported, page):
    result, text = reported.result, text_of(page)
    verification = result.verification
    assert result.verdict == "fixed"
    assert "register neurons found, and moving them works" in text
    assert "provisional" in text
    assert "95 % interval, over photographs" in text
    for check in verification.checks:
        interval = "" if check.interval is None else "{:.4f} to {:.4f} ".format(*check.interval)
        assert f"{check.name} {check.value:.4f} {interval}{check.bound:.4f} passed" in text
    for neuron in result.register_neurons:
        assert f"{neuron.layer} / {neuron.neuron} {short_number(neuron.score)}" in text
    draws = [draw.outlier_ratio for draw in verification.controls.random]
    assert len(draws) == 10
    assert f"of 10 random draws, moved: the fewest outliers {min(draws):.4f}" in text
    assert f"of 10 random draws, moved: mean {sum(draws) / 10:.4f}" in text
    assert f"zeroed, not moved {verification.controls.zeroed.outlier_ratio:.4f}" in text
    largest = verification.head_rooms.before.largest_output
    assert f"{short_number(largest.largest_output)} ({largest.name})" in text
    assert f"cosine of the pooled feature to the base model's, mean 1 {verification.feature_similarity:.4f}" in text
    low, high = verification.feature_similarity_interval
    assert f"{1 - verification.feature_similarity:.4f} {1 - high:.4f} to {1 - low:.4f}" in text
    for chosen in ("norm_threshold", "detection_layer", "first_layer", "last_layer", "top_k"):
        assert re.search(rf"{chosen} \S+ chosen automatically", text), chosen
    assert "seed 0 given, or the default" in text
    assert f"round 1 {len(result.selections[0].register_neurons)} " in text
    assert f"{100 * verification.maps.on_register:.2f} %" in text
    assert "112 x 112 pixels" in text
    assert f"torch {result.provenance.versions['torch']}" in text
    assert "A planted <toy> model." in text


def test_page_needs_nothing_from_outside(reported, page):
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(sources) > 5
    assert all(source.startswith("data:") for source in sources)
    assert "@import" not in page
    assert "url(" not in page
    assert "://" not in page
    figures = sorted(reported.folder.glob("figures/*.png"))
    assert [figure.stem for figure in figures] == [
        "controls", "norms_per_block", "populations", "scores", "selection_path",
    ]  # fmt: skip
    for figure in figures:
        assert base64.b64encode(figure.read_bytes()).decode() in page


def test_names_from_outside_stay_text(reported):
    origin = dataclasses.replace(
        reported.result.provenance,
        model=f"me/{EVIL}",
        source=DataSource(repo_id=EVIL),
        bad_images=(EVIL,),
        revision=EVIL,
    )
    result = dataclasses.replace(reported.result, provenance=origin, reasons=(f"`{EVIL}` {EVIL}",))
    page = render_page(result, dataclasses.replace(reported.switch, note=EVIL), {})
    assert "alert(1)" in page
    assert EVIL not in page
    assert "<script>alert" not in page
    assert text_of(page).count("alert(1)") >= 6


def test_data_of_the_switch_stays_inside_its_element(reported, page):
    found = re.search(r'<script type="application/json" id="switch-data">(.*?)</script>', page, re.DOTALL)
    data = json.loads(found[1])
    assert data["counts"] == [0, 1, 2, 3]
    assert len(data["photographs"]) == 4
    assert len(base64.b64decode(data["photographs"][0]["states"][5]["norms"][0])) == 64


def test_one_colour_scale_for_all_states(reported):
    threshold = reported.result.norms.norm_threshold
    data = switch_data(reported.switch, threshold)
    largest = max(float(photograph.norms_SLhw.max()) for photograph in reported.switch.photographs)
    assert data["maps"]["norms"]["choices"][0]["high"] == short_number(largest)
    levels = [
        base64.b64decode(state["norms"][0]) for photograph in data["photographs"] for state in photograph["states"]
    ]
    assert max(max(bytes_) for bytes_ in levels) == 255
    assert min(min(bytes_) for bytes_ in levels) == 0
    outliers = sum(
        level > 255 * data["maps"]["norms"]["choices"][0]["mark"]
        for level in base64.b64decode(data["photographs"][0]["states"][0]["norms"][0])
    )
    assert data["photographs"][0]["states"][0]["notes"]["outliers"] == f"{outliers} of 64"


def test_a_report_is_made_again_from_its_folder(page, copy):
    (copy / "report.html").unlink()
    shutil.rmtree(copy / "figures")
    written = write_report(copy)
    assert written[0].read_text(encoding="utf-8") == page
    assert sorted(path.name for path in copy.glob("figures/*")) == sorted(path.name for path in written[1:])


def test_a_calibration_without_photographs_has_a_report_without_a_switch(copy):
    (copy / SWITCH_FILE).unlink()
    page = write_report(copy)[0].read_text(encoding="utf-8")
    assert "<script" not in page
    assert "The neuron switch" not in page
    assert "of 10 random draws, moved: mean" in page


def test_a_clean_result_says_so_and_shows_norms_only(reported, tmp_path):
    clean = dataclasses.replace(
        reported.result, verdict="clean", register_neurons=(), verification=None, selections=(), candidates=()
    )
    clean.save(tmp_path)
    written = write_report(tmp_path)
    assert [path.name for path in written] == ["report.html", "norms_per_block.png", "populations.png"]
    text = text_of(written[0].read_text(encoding="utf-8"))
    assert clean.meaning in text
    assert "Which neurons?" not in text


def test_a_failed_condition_is_told_in_words(reported):
    verification = reported.result.verification
    failed = dataclasses.replace(verification.checks[0], value=0.4, interval=None)
    result = dataclasses.replace(
        reported.result,
        verdict="unresolved",
        reasons=("outliers stay. Try `--rounds`.",),
        verification=dataclasses.replace(verification, checks=(failed, *verification.checks[1:])),
    )
    page = render_page(result, None, {})
    assert "<li>outliers stay. Try <code>--rounds</code>.</li>" in page
    assert "0.4000 0.1000 failed" in text_of(page)


def test_a_checkpoint_is_no_place_for_a_report(copy):
    (copy / "config.json").write_text("{}")
    before = sorted(copy.rglob("*"))
    with pytest.raises(ValueError, match="is a checkpoint, which is published as it is"):
        write_report(copy)
    assert sorted(copy.rglob("*")) == before


def test_given_and_read_results_make_one_page(page, copy):
    result = CalibrationResult.load(copy)
    assert write_report(copy, result)[0].read_text(encoding="utf-8") == page
