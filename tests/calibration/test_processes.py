"""Several processes, real ones: same images, same result; one that dies or fails ends all of them."""

import dataclasses
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from brief import BRIEF
from gallery import KINDS, Gallery, named
from norm_reports import assert_equal_reports

from ttreg_hf.calibration.calibration_result import CalibrationResult
from ttreg_hf.calibration.calibration_run import calibrate
from ttreg_hf.calibration.config import GateConfig, RunConfig
from ttreg_hf.cli import main
from ttreg_hf.images.progress import say_nothing
from ttreg_hf.loading import load_model, load_processor

BATCH_SIZES, WORKERS = (1, 7, None), (0, 1, 2)
# every kind of source; batch sizes and workers alternate, so that each is met more than once
MATRIX = {kind: (BATCH_SIZES[place % 3], WORKERS[(place + place // 3) % 3]) for place, kind in enumerate(KINDS)}
WITH_THREE = ("parquet 3", "tars", "folder")
SAVE_EVERY = 6
DIFFERENT = {
    ("tars", "split already"): "differ before image 1",
    ("parquet 4", "split already"): "differ before image 1",
    ("on disk", "split already"): "differ in length: 12 and 11",
    ("parquet 4", "shuffled without a seed"): "differ before image 1",
    ("on disk", "shuffled without a seed"): "differ in images",
    ("parquet 3", "late"): "differ before image 20",
}


def calibrate_alone(
    gallery: Gallery,
    *,
    images: Any = None,
    gate: GateConfig = BRIEF,
    run: RunConfig | None = None,
    say: Any = say_nothing,
    **config: Any,
) -> CalibrationResult:
    return calibrate(
        load_model(str(gallery.model)),
        named(gallery.images("folder") if images is None else images),
        config=gallery.config(**config),
        processor=load_processor(str(gallery.model)),
        gate=gate,
        run=run,
        say=say,
    )


@pytest.fixture(scope="module")
def alone(gallery: Gallery) -> CalibrationResult:
    return calibrate_alone(gallery)


@pytest.fixture(scope="module")
def alone_automatic(gallery: Gallery) -> CalibrationResult:
    return calibrate_alone(gallery, norm_threshold=None, last_layer=None, top_k=None)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("desk")


@pytest.fixture(scope="module")
def by_two(launch: Any, gallery: Gallery, desk: Path) -> subprocess.CompletedProcess[str]:
    """All that two processes are asked in this file, in one launch."""
    tasks = [
        {
            "do": "calibrate",
            "kind": kind,
            "config": {"batch_size": batch_size},
            "run": {"workers": workers},
            "output": desk / f"2 {kind}",
        }
        for kind, (batch_size, workers) in MATRIX.items()
    ]
    automatic = {"norm_threshold": None, "last_layer": None, "top_k": None}
    tasks += [
        {"do": "calibrate", "config": automatic, "output": desk / "2 automatic"},
        {"do": "calibrate", "config": {"num_images": 500}, "output": desk / "2 short"},
        {"do": "calibrate", "config": {"num_images": 1}, "output": desk / "2 one image"},
        {"do": "tell places", "kind": "tars", "batch_size": 3, "workers": 0, "output": desk / "2 places 0"},
        {"do": "tell places", "kind": "parquet 3", "batch_size": 4, "workers": 2, "output": desk / "2 places 2"},
    ]
    tasks += [
        {"do": "refused images", "kind": kind, "how": how, "output": desk / f"2 {kind} {how}"}
        for kind, how in DIFFERENT
    ]
    more = ["--num-images", "40", "--batch-size", "8", *explicit(gallery)]
    break_after(gallery, 2 * SAVE_EVERY, desk / "state of 1")
    resumed = {"resume": True, "save_every": SAVE_EVERY}
    tasks += [
        {
            "do": "calibrate",
            "run": {"save_every": SAVE_EVERY, "state_directory": desk / "state of 2"},
            "break_at": 2 * SAVE_EVERY,
            "output": desk / "never",
        },
        {
            "do": "calibrate",
            "run": {**resumed, "state_directory": desk / "state of 1"},
            "output": desk / "2 resumed from 1",
        },
        {"do": "command", "arguments": command(gallery, gallery.root / "tars", desk / "2 command", *more)},
    ]
    ended = launch(2, *tasks)
    assert ended.returncode == 0, ended.stderr
    return ended


@pytest.fixture(scope="module")
def by_three(launch: Any, gallery: Gallery, desk: Path) -> subprocess.CompletedProcess[str]:
    """The same with three, of which one is killed in the end."""
    calibrations = [
        {"do": "calibrate", "kind": kind, "config": {"batch_size": 4}, "output": desk / f"3 {kind}"}
        for kind in WITH_THREE
    ]
    places = {"do": "tell places", "kind": "tars", "batch_size": 3, "workers": 0, "output": desk / "3 places"}
    killed = {"do": "command", "arguments": to_be_killed(gallery, desk)}
    return launch(3, *calibrations, places, {"do": "kill rank 1", "at": 12}, killed)


@pytest.fixture(scope="module")
def broken_by_two(launch: Any, gallery: Gallery, desk: Path, spoilt: Path) -> subprocess.CompletedProcess[str]:
    """Unreadable images, few enough and too many; then one process fails."""
    folder, config = str(spoilt / "folder"), {"num_images": 28}
    run = {"max_bad_share": 0.5}
    allowed = {"do": "calibrate", "images": folder, "config": config, "run": run, "output": desk / "2 spoilt"}
    too_many = ["--num-images", "28", "--max-bad-images", str(4 / 28)]
    return launch(
        2,
        allowed,
        {"do": "command", "arguments": command(gallery, folder, desk / "refused", *too_many), "code": 1},
        {"do": "fail on rank 1"},
        {"do": "command", "arguments": command(gallery, gallery.root / "folder", desk / "failed")},
    )


def command(gallery: Gallery, images: Path | str, output: Path, *more: str) -> list[str]:
    given = ["--dataset", str(images), "--output", str(output), "--device", "cpu"]
    return ["calibrate", str(gallery.model), *given, *more]


def explicit(gallery: Gallery) -> list[str]:
    """The settings of `Gallery.config`."""
    return ["--norm-threshold", str(gallery.norm_threshold), "--last-layer", "3", "--top-k", "4"]


def to_be_killed(gallery: Gallery, desk: Path) -> list[str]:
    more = ["--num-images", "20", "--batch-size", "1", "--save-every", "6", *explicit(gallery)]
    return command(gallery, gallery.root / "folder", desk / "killed" / "c", *more)


class Broken(Exception):
    """Stands for whatever ends a run."""


def break_after(gallery: Gallery, place: int, state: Path, **config: Any) -> None:
    """A run of one process that ends when the state of a place has been saved."""
    from ttreg_hf.calibration.run_state import StateStore

    def save_and_break(store: StateStore, run_state: Any) -> None:
        save(store, run_state)
        if run_state.place == place:
            raise Broken

    with pytest.MonkeyPatch.context() as patch:
        save = StateStore.save
        patch.setattr(StateStore, "save", save_and_break)
        with pytest.raises(Broken):
            calibrate_alone(gallery, run=RunConfig(save_every=SAVE_EVERY, state_directory=state), **config)


def assert_same(found: CalibrationResult, expected: CalibrationResult) -> None:
    """All but what must differ: processes, versions and date; float32 forward passes may round differently."""
    torch.testing.assert_close(found.scores, expected.scores, rtol=1e-6, atol=1e-6 * float(expected.scores.max()))
    assert places_of(found) == places_of(expected)
    for one, other in zip(found.register_neurons, expected.register_neurons, strict=True):
        assert one.score == pytest.approx(other.score, rel=1e-6)
    assert found.verdict == expected.verdict
    assert dataclasses.replace(found.convergence, top_k=0) == dataclasses.replace(expected.convergence, top_k=0)
    assert_equal_reports(found.norms, expected.norms, rel=1e-6)
    assert _controls(found) == pytest.approx(_controls(expected), rel=1e-4, abs=1e-5)
    for name in ("num_images", "images_scored", "images_with_outliers", "bad_images", "image_size", "dtype"):
        assert getattr(found.provenance, name) == getattr(expected.provenance, name), name


def _controls(result: CalibrationResult) -> list[float]:
    """What the processes share out: controls, and each neuron alone."""
    verification = result.verification
    if verification is None:
        return []
    outcomes = [verification.controls.zeroed, *verification.controls.random]
    values = [value for outcome in outcomes for value in (outcome.outlier_ratio, outcome.feature_similarity)]
    return values + [value for effect in verification.neurons for value in (effect.norm_share, effect.feature_change)]


def places_of(result: CalibrationResult) -> list[tuple[int, int]]:
    return [(neuron.layer, neuron.neuron) for neuron in result.register_neurons]


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_equal_one(by_two, desk, alone, kind):
    found = CalibrationResult.load(desk / f"2 {kind}")
    assert found.provenance.processes == 2
    assert_same(found, alone)


def test_two_processes_choose_the_same_settings(by_two, desk, alone_automatic):
    found = CalibrationResult.load(desk / "2 automatic")
    assert found.config.norm_threshold == pytest.approx(alone_automatic.config.norm_threshold, rel=1e-6)
    names = ("detection_layer", "first_layer", "last_layer", "top_k")
    assert all(getattr(found.config, name) == getattr(alone_automatic.config, name) for name in names)
    assert_same(found, alone_automatic)


@pytest.mark.parametrize(("name", "num_images"), [("short", 500), ("one image", 1)])
def test_processes_with_fewer_or_no_images_do_not_matter(by_two, desk, gallery, name, num_images):
    assert_same(CalibrationResult.load(desk / f"2 {name}"), calibrate_alone(gallery, num_images=num_images))


@pytest.mark.parametrize("workers", [0, 2])
def test_image_g_belongs_to_rank_g_modulo_world(by_two, desk, workers):
    for rank in range(2):
        world, places = json.loads((desk / f"2 places {workers}-{rank}.json").read_text())
        assert world == 2  # processes that know of each other, not one twice
        assert places == list(range(rank, 20, 2))


@pytest.mark.parametrize(("kind", "how"), DIFFERENT)
def test_processes_that_see_different_images_are_refused_on_each_of_them(by_two, desk, kind, how):
    for rank in range(2):
        told = json.loads((desk / f"2 {kind} {how}-{rank}.json").read_text())
        assert told.startswith("All processes see the same images in the same order")
        assert f"processes 0 and 1 {DIFFERENT[kind, how]}" in told


def test_a_run_is_resumed_by_more_processes(by_two, desk, alone):
    assert_same(CalibrationResult.load(desk / "2 resumed from 1"), alone)
    assert json.loads((desk / "2 resumed from 1" / "said.json").read_text())[0] == "resumed after 12 images"
    assert not (desk / "state of 1").exists()


def test_a_run_is_resumed_by_fewer_processes(by_two, desk, gallery, alone):
    state = desk / "state of 2"
    assert sorted({path.name.split("-rank-")[1] for path in state.iterdir()}) == [
        "0-of-2.safetensors",
        "1-of-2.safetensors",
    ]
    run = RunConfig(save_every=SAVE_EVERY, state_directory=state, resume=True)
    assert_same(calibrate_alone(gallery, run=run), alone)
    assert not state.exists()


def test_only_the_first_process_prints_and_writes(by_two, desk, gallery):
    lines = by_two.stdout.splitlines()
    assert lines[0] == f"2 processes, cpu, images: {gallery.root / 'tars'} (train) (the first 40)"
    assert lines[1] == "asked for 40 images, the data set had 23"
    assert sum(line.startswith("verdict: unresolved: too few images") for line in lines) == 1  # of 23
    files = {str(file) for file in (desk / "2 command").rglob("[!.]*") if file.is_file()}
    assert sorted(line.removeprefix("wrote ") for line in lines if line.startswith("wrote ")) == sorted(files)
    expected = calibrate_alone(gallery, num_images=40, gate=GateConfig())
    assert_same(CalibrationResult.load(desk / "2 command"), expected)


def test_three_processes_equal_one(by_three, desk, alone):
    for kind in WITH_THREE:
        found = CalibrationResult.load(desk / f"3 {kind}")
        assert found.provenance.processes == 3
        assert_same(found, alone)
    shares = [json.loads((desk / f"3 places-{rank}.json").read_text()) for rank in range(3)]
    assert shares == [[3, list(range(rank, 20, 3))] for rank in range(3)]


def test_a_killed_launch_is_resumed_with_the_unbroken_result(by_three, desk, gallery, capsys):
    """The second of three processes gets SIGKILL; one process goes on."""
    assert by_three.returncode != 0
    assert "SIGKILL" in by_three.stderr
    assert [path.name for path in (desk / "killed").glob("[!.]*")] == ["c.state"]
    assert sum(path.stat().st_size for path in (desk / "killed").glob(".*")) < 10_000  # an empty work folder, its lock
    assert main([*to_be_killed(gallery, desk), "--resume"]) == 0
    assert "\nresumed after 12 images\n" in capsys.readouterr().out
    assert_same(CalibrationResult.load(desk / "killed" / "c"), calibrate_alone(gallery, gate=GateConfig()))
    assert [path.name for path in (desk / "killed").iterdir()] == ["c"]


def test_two_processes_skip_and_count_the_same_unreadable_images(broken_by_two, desk, gallery, spoilt):
    run = RunConfig(max_bad_share=0.5)
    alone = calibrate_alone(gallery, images=spoilt / "folder", run=run, num_images=28)
    assert_same(CalibrationResult.load(desk / "2 spoilt"), alone)


def test_two_processes_refuse_too_many_unreadable_images_together(broken_by_two, desk):
    """Five of 28 are unreadable, three of one process and two of the other: four allowed are still too few."""
    assert "error: At most 4 of 28 images may be unreadable, got 5: " in broken_by_two.stderr
    assert not (desk / "refused").exists()


def test_a_process_that_fails_ends_the_launch_with_its_message(broken_by_two, desk):
    assert broken_by_two.returncode != 0
    assert "ttreg (rank 1): error: this process is out of order" in broken_by_two.stderr
    assert "verdict" not in broken_by_two.stdout
    assert not (desk / "failed").exists()
