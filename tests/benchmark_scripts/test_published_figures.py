"""Reproducing published figures, on a planted model with a made-up list of what was published about it."""

import dataclasses
import functools
import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
from benchmarks import published_figures, reproduction
from benchmarks.reproduction import Reproduction, format_table, reproduce, save_reproduction
from brief import BRIEF
from torch import Tensor

from ttreg_hf.calibration.calibration_result import CalibrationResult
from ttreg_hf.images.data_sets import NamedImages
from ttreg_hf.images.data_source import DataSource
from ttreg_hf.images.image_source import open_images
from ttreg_hf.known.checkpoints import known_checkpoints
from ttreg_hf.known.known_checkpoint import (
    PUBLISHED,
    SETTINGS_ONLY,
    CalibrationDataset,
    Expectation,
    KnownCheckpoint,
    PublishedOptions,
    Recipe,
)
from ttreg_hf.planted import PlantedModel, planted_model, synthetic_images

REPOSITORY = Path(__file__).parents[2]
MADE_UP = "made up for this test"
SYNTHETIC = DataSource(description="synthetic images")
reproduce_briefly = functools.partial(reproduce, gate=BRIEF)
ORDINARY_NEURONS = ((1, 0), (1, 1), (1, 2), (1, 3))  # of a layer where nothing is planted


@pytest.fixture(scope="module")
def planted() -> PlantedModel:
    return planted_model(neurons_per_layer={2: 3}, strengths=[30.0, 12.0, 10.0])


def _pictures() -> Tensor:
    return synthetic_images(24, seed=5)


def _places(planted: PlantedModel) -> tuple[tuple[int, int], ...]:
    return tuple((neuron.layer, neuron.neuron) for neuron in planted.register_neurons)


def _expect(quantity: str, **fields: Any) -> Expectation:
    return Expectation(quantity, MADE_UP, **fields)


def _known(planted: PlantedModel, **changes: Any) -> KnownCheckpoint:
    """What is true of the planted model."""
    first, second, third = _places(planted)
    known = KnownCheckpoint(
        base_model="made/up",
        family="dinov2",
        num_hidden_layers=6,
        neurons_per_layer=256,
        dataset=CalibrationDataset("none", "train", "image"),
        recipe=Recipe(
            num_images=24,
            norm_threshold=planted.norm_threshold,
            detection_layer=4,
            last_layer=3,
            top_k=3,
            source=MADE_UP,
        ),
        register_neurons=_places(planted),
        options=PublishedOptions(shift_value="per_neuron"),
        source=MADE_UP,
        status=PUBLISHED,
        expectations=(
            _expect("rank", neuron=first, at_most=1),
            _expect("rank", neuron=second, at_least=2, at_most=2),
            _expect("rank", neuron=third, at_most=3),
            _expect("score_ratio", published=2.5, at_least=2.2, at_most=2.8),
            _expect("published_in_top_k", at_least=1.0),
            _expect("published_in_top_2k", at_least=1.0),
            _expect("first_outlier_layer", published=2, at_least=2, at_most=2),
            _expect("norm_median", layer=4, at_most=planted.norm_threshold),
            _expect("norm_max", layer=4, at_least=2 * planted.norm_threshold),
            _expect("paper_threshold", layer=4, at_least=1.0),
        ),
    )
    return dataclasses.replace(known, **changes)


@pytest.fixture(scope="module")
def passing(planted: PlantedModel) -> Reproduction:
    return reproduce_briefly(planted.model, _known(planted), NamedImages(_pictures(), SYNTHETIC))


def _statuses(found: Reproduction) -> dict[str, str]:
    return {row.quantity: row.status for row in found.rows}


def test_all_rows_pass_where_the_figures_are_true(planted, passing):
    assert set(_statuses(passing).values()) == {"PASS"}
    assert passing.passed
    assert len(passing.rows) == len(_known(planted).expectations) + 5
    assert passing.result.config.norm_threshold == planted.norm_threshold
    assert [row.measured for row in passing.rows[:3]] == [1, 2, 3]
    assert passing.rows[3].measured == pytest.approx(2.5, rel=0.01)  # strengths 30 and 12


def test_measured_norms_are_those_of_the_block_that_is_named(passing):
    measured = {row.quantity: row.measured for row in passing.rows}
    norms = passing.result.norms
    assert measured["norm median, block 4"] == norms.median[4]
    assert measured["norm max, block 4"] == norms.max[4]
    assert measured["paper threshold, block 4"] == norms.mean[4] + 3 * norms.std[4]


def test_every_row_names_its_source_and_what_passes(passing):
    assert all(row.source and row.expected for row in passing.rows)
    assert passing.rows[3].expected == "2.5, at least 2.2 and at most 2.8"


OUT_OF_BOUNDS = [
    ("rank", {"neuron": (1, 0), "at_most": 3}),
    ("rank", {"neuron": (5, 0), "at_most": 10**9}),  # layer 5 is not searched: its neurons have no rank
    ("score_ratio", {"at_least": 3.0}),
    ("first_outlier_layer", {"at_most": 1}),
    ("norm_median", {"layer": 0, "at_least": 1e6}),
    ("norm_max", {"layer": 4, "at_most": 1e-6}),
    ("paper_threshold", {"layer": 4, "at_least": 1e6}),
]


def test_figures_out_of_bounds_fail_and_only_they(planted):
    true = [each for each in _known(planted).expectations if not each.quantity.startswith("published")]
    wrong = [_expect(quantity, **fields) for quantity, fields in OUT_OF_BOUNDS]
    known = _known(planted, expectations=(*true, *wrong), register_neurons=None, status=SETTINGS_ONLY)
    found = reproduce_briefly(planted.model, known, _pictures())
    assert not found.passed
    assert [row.status for row in found.rows] == ["PASS"] * len(true) + ["FAIL"] * len(wrong) + ["PASS"] * 3
    assert found.published is None


def test_wrong_published_neurons_fail_where_they_are_used(planted):
    """Two of four are planted: half are found, and patching with them alone leaves outliers."""
    half = (*_places(planted)[1:], *ORDINARY_NEURONS[:2])
    overlap = (_expect("published_in_top_k", at_least=0.6), _expect("published_in_top_2k", at_least=0.6))
    found = reproduce_briefly(planted.model, _known(planted, register_neurons=half, expectations=overlap), _pictures())
    assert found.rows[0].measured == 0.5
    assert found.rows[0].status == found.rows[1].status == "FAIL"
    assert found.published.outlier_fraction_after > found.ours.outlier_fraction_after == 0.0
    assert _statuses(found)["outliers after / before, patched with the published neurons"] == "FAIL"
    assert _statuses(found)["outliers after / before, patched with our neurons"] == "PASS"
    assert _statuses(found)["verdict"] == "PASS"


def test_published_options_are_used(planted):
    """With `shift_fill="keep"` nothing is taken off the patches, so the published neurons do not help."""
    known = _known(planted, options=PublishedOptions(shift_fill="keep"))
    found = reproduce_briefly(planted.model, known, _pictures()[:4])
    assert found.published.outlier_ratio == 1.0
    assert found.ours.outlier_ratio == 0.0
    assert not found.passed


def test_a_clean_model_fails_without_breaking(planted):
    known = _known(planted, recipe=dataclasses.replace(_known(planted).recipe, norm_threshold=1e6))
    found = reproduce_briefly(planted.model, known, _pictures()[:4])
    assert found.ours is None
    assert found.norms_after is None
    assert _statuses(found)["verdict"] == "FAIL"
    assert found.rows[0].measured is None
    json.dumps(found.to_dict(), allow_nan=False)


def test_settings_go_over_the_recipe(planted):
    found = reproduce_briefly(planted.model, _known(planted), iter(_pictures()), num_images=5, batch_size=2)
    assert (found.result.config.num_images, found.result.norms.num_images) == (5, 5)
    assert found.result.config.top_k == 3


def test_saving_writes_table_calibration_and_picture(tmp_path, passing):
    save_reproduction(passing, tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out").glob("[!.]*"))
    assert names == ["calibration.json", "calibration.safetensors", "norms_per_block.png", "reproduction.json"]
    written = json.loads((tmp_path / "out" / "reproduction.json").read_text(encoding="utf-8"))
    assert written["passed"] is True
    assert [row["status"] for row in written["rows"]] == [row.status for row in passing.rows]
    assert CalibrationResult.load(tmp_path / "out").verdict == "fixed"
    with pytest.raises(FileExistsError, match="exists and is not empty"):
        save_reproduction(passing, tmp_path / "out")
    save_reproduction(passing, tmp_path / "out", overwrite=True)


def test_a_clean_model_has_a_picture_too(tmp_path, planted):
    known = _known(planted, recipe=dataclasses.replace(_known(planted).recipe, norm_threshold=1e6))
    save_reproduction(reproduce_briefly(planted.model, known, _pictures()[:2]), tmp_path / "out")
    assert (tmp_path / "out" / "norms_per_block.png").read_bytes()[:4] == b"\x89PNG"


def test_the_table_has_a_verdict_and_a_source_for_each_row(passing):
    lines = format_table(passing).splitlines()
    assert lines[0] == "made/up, 24 images"
    assert lines[-1] == f"{len(passing.rows)} PASS, 0 FAIL"
    assert lines[1].startswith("PASS  rank of 2/")
    assert lines[2] == f"      {MADE_UP}"
    assert len(lines) == 2 * len(passing.rows) + 2


@pytest.fixture
def command(planted: PlantedModel, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The command line with the planted model as the only known checkpoint."""

    def run(*arguments: str, known: KnownCheckpoint | None = None) -> int:
        checkpoint = known or _known(planted)
        monkeypatch.setattr(reproduction, "known_checkpoint", {"made/up": checkpoint}.get)
        monkeypatch.setattr(reproduction, "load_model", lambda *_, **__: planted.model)
        monkeypatch.setattr(reproduction, "load_processor", lambda *_, **__: None)
        images = NamedImages(open_images(_pictures()), SYNTHETIC)
        monkeypatch.setattr(reproduction, "find_images", lambda *_, **__: images)
        return reproduction.main(arguments)

    return run


def test_the_command_prints_a_table_and_returns_0(command, capsys):
    assert command("made/up", "--num-images", "24") == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("PASS, 0 FAIL")


def test_the_command_returns_1_if_a_row_fails_and_still_writes(command, capsys, planted, tmp_path):
    known = _known(planted, expectations=(_expect("score_ratio", at_least=100.0),))
    assert command("made/up", "--json", "--output", str(tmp_path / "out"), known=known) == 1
    printed = json.loads(capsys.readouterr().out)
    assert (printed["passed"], printed["rows"][0]["status"]) == (False, "FAIL")
    assert json.loads((tmp_path / "out" / "reproduction.json").read_text(encoding="utf-8")) == printed


def test_an_unknown_model_is_refused_and_the_known_are_named(command, capsys):
    assert command("made/otherwise") == 1
    error = capsys.readouterr().err
    assert error.startswith("Error: MODEL is a checkpoint with published figures, got 'made/otherwise'. Known are ")
    assert "facebook/dinov2-large" in error


def test_an_output_that_exists_is_refused_before_the_work(command, capsys, tmp_path, monkeypatch):
    (tmp_path / "old").write_text("keep me")
    monkeypatch.setattr(reproduction, "reproduce", lambda *_, **__: pytest.fail("no work before the check"))
    assert command("made/up", "--output", str(tmp_path)) == 1
    assert "exists and is not empty" in capsys.readouterr().err


def test_wrong_usage_returns_2():
    with pytest.raises(SystemExit) as caught:
        reproduction.main(["--no-such-option"])
    assert caught.value.code == 2


def test_the_script_says_that_it_has_not_met_real_weights(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["check_published.py", "--help"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(REPOSITORY / "scripts" / "check_published.py"), run_name="__main__")
    assert caught.value.code == 0
    assert "Not run on real weights yet" in " ".join(capsys.readouterr().out.split())
    assert "has not been run on real weights yet" in " ".join((reproduction.__doc__ or "").split())


def test_the_script_exits_with_the_commands_code(monkeypatch):
    monkeypatch.setattr(reproduction, "main", lambda: 1)
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(REPOSITORY / "scripts" / "check_published.py"), run_name="__main__")
    assert caught.value.code == 1


def test_every_shipped_expectation_can_be_measured_and_holds_what_was_published():
    expectations = [item for known in known_checkpoints().values() for item in known.expectations]
    assert len(expectations) > 15
    for item in expectations:
        assert item.quantity in published_figures._MEASURED
        low, high = item.at_least, item.at_most
        if item.published is not None:
            assert low is None or low <= item.published
            assert high is None or item.published <= high
