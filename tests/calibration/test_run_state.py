"""States of a run that was broken off: the result of the unbroken one, or a refusal that says what differs."""

import dataclasses
import re
import shutil
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from brief import calibrate_briefly
from gallery import Gallery, named

from ttreg_hf.calibration.calibration_result import CalibrationResult
from ttreg_hf.calibration.config import RunConfig
from ttreg_hf.calibration.run_state import RunState, StateStore, remove_states
from ttreg_hf.images.batches import BadImage
from ttreg_hf.images.data_sets import NamedImages
from ttreg_hf.images.data_source import DataSource
from ttreg_hf.images.processes import Processes
from ttreg_hf.images.same_images import StreamDigest
from ttreg_hf.loading import load_model, load_processor
from ttreg_hf.measuring.neuron_scores import ScoreStatistics

from .test_processes import SAVE_EVERY, assert_same, break_after, calibrate_alone


def _resume(gallery: Gallery, state: Path, **config: Any) -> CalibrationResult:
    return calibrate_alone(gallery, run=RunConfig(save_every=SAVE_EVERY, state_directory=state, resume=True), **config)


@pytest.fixture(scope="module")
def alone(gallery: Gallery) -> CalibrationResult:
    """Of the unbroken run."""
    return calibrate_alone(gallery)


@pytest.fixture(scope="module")
def broken(gallery: Gallery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run left that was broken off after 12 images."""
    folder = tmp_path_factory.mktemp("broken")
    break_after(gallery, 12, folder)
    return folder


@pytest.fixture
def state(broken: Path, tmp_path: Path) -> Path:
    """The same, for one test alone."""
    return shutil.copytree(broken, tmp_path / "state")


@pytest.mark.parametrize("place", [6, 18])
def test_a_resumed_run_ends_as_the_unbroken_one(gallery, tmp_path, place, alone):
    """Before and after place 16, where the curve has its first point."""
    break_after(gallery, place, tmp_path / "state")
    assert_same(_resume(gallery, tmp_path / "state"), alone)
    assert not (tmp_path / "state").exists()


def test_a_resumed_run_chooses_the_same_settings(gallery, tmp_path):
    automatic = {"norm_threshold": None, "last_layer": None, "top_k": None}
    break_after(gallery, 18, tmp_path / "state", **automatic)
    assert_same(_resume(gallery, tmp_path / "state", **automatic), calibrate_alone(gallery, **automatic))


def test_a_resumed_run_reads_no_image_before_its_place_for_scoring(gallery, state):
    seen: dict[str, list[int]] = {}

    def progress(stage: str, batches: Any, num_images: int) -> Any:
        for batch in batches:
            seen.setdefault(stage, []).extend(batch.places)
            yield batch

    model, processor = load_model(str(gallery.model)), load_processor(str(gallery.model))
    run = RunConfig(save_every=SAVE_EVERY, state_directory=state, resume=True)
    images, config = named(gallery.images("folder")), gallery.config()
    calibrate_briefly(model, images, config=config, processor=processor, run=run, progress=progress)
    assert seen["score"] == list(range(12, 20))


def test_a_resumed_run_keeps_its_unreadable_images(gallery, tmp_path):
    """Those behind the first 128 are seen only while scoring: here the looks at the first images are left out."""
    store = _store(tmp_path, resume=True)
    statistics = ScoreStatistics(2, 3, torch.device("cpu"))
    store.save(RunState(6, statistics, {}, {4: BadImage("a.png", "broken")}))
    assert store.load(statistics).bad_images == {4: BadImage("a.png", "broken")}


def test_a_state_keeps_what_the_stream_was(tmp_path):
    """Of processes that were not equally far the furthest; processes that saw other images are refused."""
    far, near, other = (_digest(images) for images in ((0, 1, 2, 3), (0, 1), (1, 0)))
    for rank, stream in enumerate((near, far)):
        _store(tmp_path, rank=rank, world=2).save(dataclasses.replace(_state(6, 1.0), stream=stream))
    for rank in range(2):
        assert _store(tmp_path, rank=rank, world=2).load(EMPTY).stream == far
    _store(tmp_path, rank=0, world=2).save(dataclasses.replace(_state(6, 1.0), stream=other))
    with pytest.raises(ValueError, match="processes 0 and 1 differ before image 1"):
        _store(tmp_path).load(EMPTY)


def _digest(images: tuple[int, ...]) -> StreamDigest:
    found = StreamDigest()
    for place, image in enumerate(images):
        found = found.after(place, bytes([image]))
    return found


def test_a_resumed_stream_ends_as_the_unbroken_one_and_another_one_is_refused(gallery, tmp_path, alone):
    """The other one has the same first image, and so the same name in the state."""
    images = gallery.images("parquet 4")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gallery.__class__, "images", lambda *_: images)
        break_after(gallery, 12, tmp_path)
    others = images.take(1)
    others = datasets.concatenate_datasets([others, images.skip(2)])
    with pytest.raises(ValueError, match="continues a run on the same images, but these differ before image 2"):
        _resume(gallery, tmp_path, images=others)
    assert_same(_resume(gallery, tmp_path, images=images), alone)


def test_resuming_without_a_state_starts_from_the_beginning(gallery, tmp_path, alone):
    said: list[str] = []
    run = RunConfig(save_every=SAVE_EVERY, state_directory=tmp_path / "none", resume=True)
    assert_same(calibrate_alone(gallery, run=run, say=said.append), alone)
    assert said == [f"nothing to resume in {tmp_path / 'none'}: beginning with the first image"]


def test_without_resume_a_state_is_not_read(gallery, state, alone):
    for path in state.iterdir():
        path.write_bytes(b"no state")
    assert_same(calibrate_alone(gallery, run=RunConfig(save_every=SAVE_EVERY, state_directory=state)), alone)


@pytest.mark.parametrize("save_every", [20, 21])
def test_a_run_that_is_shorter_than_save_every_writes_nothing(gallery, tmp_path, monkeypatch, save_every):
    monkeypatch.setattr(StateStore, "save", lambda *args: pytest.fail("nothing to save"))
    calibrate_alone(gallery, run=RunConfig(save_every=save_every, state_directory=tmp_path / "state"))
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("fields", [{"seed": 1}, {"top_k": 3}, {"num_images": 19}, {"detect_on_prefix": True}])
def test_a_state_of_other_settings_is_refused_and_they_are_named(gallery, state, fields):
    (name,) = fields
    with pytest.raises(ValueError, match=rf"holds one that differs in {name}\. Give it the same ones, or remove"):
        _resume(gallery, state, **fields)


def test_batch_size_may_differ_when_resuming(gallery, state, alone):
    assert_same(_resume(gallery, state, batch_size=5), alone)


@pytest.mark.parametrize("what", ["model", "dtype", "images", "name"])
def test_a_state_of_another_model_or_data_set_is_refused(gallery, state, what):
    model, processor = load_model(str(gallery.model)), load_processor(str(gallery.model))
    images = named(gallery.images("folder"))
    if what == "model":
        with torch.no_grad():
            model.encoder.layer[4].mlp.fc1.weight[0, 0] += 0.1
    if what == "dtype":
        model = model.bfloat16()
    if what == "images":
        images = named(sorted(images.images.iterdir())[1:])
    if what == "name":
        images = NamedImages(images.images, DataSource(description="others"))
    run = RunConfig(save_every=SAVE_EVERY, state_directory=state, resume=True)
    differs = {"dtype": "model", "name": "images"}.get(what, what)
    with pytest.raises(ValueError, match=rf"{state} holds one that differs in {differs}\."):
        calibrate_briefly(model, images, config=gallery.config(), processor=processor, run=run)


def _store(folder: Path, *, rank: int = 0, world: int = 1, resume: bool = True, **run: Any) -> StateStore:
    return StateStore(folder, save_every=6, resume=resume, run={"a": 1, **run}, processes=Processes(rank, world))


def _state(place: int, value: float) -> RunState:
    statistics = ScoreStatistics(2, 3, torch.device("cpu"))
    ones = torch.full((1, 2, 3), value)
    statistics.add({0: ones, 1: ones}, torch.tensor([[True, False]]), (0,))
    return RunState(place, statistics, {4: statistics.copy()}, {})


EMPTY = ScoreStatistics(2, 3, torch.device("cpu"))


def _scores(state: RunState) -> list[float]:
    return [float(found.scores()[0, 0]) for found in (state.statistics, state.snapshots[4])]


def test_the_last_place_that_all_processes_reached_counts(tmp_path):
    for rank in range(2):
        _store(tmp_path, rank=rank, world=2).save(_state(6, 1.0 + 2 * rank))
    _store(tmp_path, rank=0, world=2).save(_state(12, 9.0))
    found = _store(tmp_path).load(EMPTY)
    assert (found.place, _scores(found), found.statistics.images_seen) == (6, [2.0, 2.0], 2)
    others = _store(tmp_path, rank=1, world=3).load(EMPTY)  # its sums are with the first process
    assert (others.place, _scores(others), others.statistics.images_seen) == (6, [0.0, 0.0], 0)


def test_a_process_far_ahead_keeps_what_the_others_have_reached(tmp_path):
    ahead, behind = (_store(tmp_path, rank=rank, world=2) for rank in range(2))
    behind.save(_state(6, 1.0))
    for place in (6, 12, 18, 24, 30):
        ahead.save(_state(place, 3.0))
    found = _store(tmp_path).load(EMPTY)
    assert (found.place, _scores(found)) == (6, [2.0, 2.0])
    behind.save(_state(12, 1.0))
    ahead.save(_state(36, 3.0))
    left = [tuple(map(int, re.findall(r"(?:place|rank)-(\d+)", path.name))) for path in sorted(tmp_path.iterdir())]
    assert left == [(12, 0), (12, 1), (18, 0), (24, 0), (30, 0), (36, 0)]


def test_what_a_process_scores_after_resuming_does_not_change_its_earlier_sums(tmp_path):
    _store(tmp_path).save(_state(6, 1.0))
    found = _store(tmp_path, rank=1, world=2).load(EMPTY)
    found.statistics.merge(_state(6, 5.0).statistics)
    assert _scores(found) == [5.0, 0.0]
    assert EMPTY.images_seen == 0


def test_half_written_states_are_ignored_and_removed(tmp_path):
    store = _store(tmp_path / "state")
    store.save(_state(6, 1.0))
    (tmp_path / "state" / ".place-000000000012-rank-0-of-1.safetensors.part").write_bytes(b"half")
    assert store.load(EMPTY).place == 6
    remove_states(store.directory)
    assert list(tmp_path.iterdir()) == []


def test_old_states_are_dropped_and_other_files_are_not(tmp_path):
    store = _store(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    for place in (6, 12, 18, 24):
        store.save(_state(place, 1.0))
    assert sorted(path.name[:18] for path in tmp_path.iterdir()) == [
        "notes.txt",
        "place-000000000024",
    ]
    remove_states(store.directory)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_state_of_another_run_does_not_hide_ones_own(tmp_path):
    _store(tmp_path, world=1, a=2).save(_state(18, 9.0))
    for rank in range(2):
        _store(tmp_path, rank=rank, world=2).save(_state(6, 1.0))
    assert _store(tmp_path).load(EMPTY).place == 6
    with pytest.raises(ValueError, match="differs in a, b"):
        _store(tmp_path, a=3, b=1).load(EMPTY)


def test_resume_needs_a_place_to_look(tmp_path):
    with pytest.raises(ValueError, match="`resume` needs the `state_directory`"):
        RunConfig(resume=True)
