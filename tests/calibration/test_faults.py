"""Files that cannot be read are skipped, counted and named; memory that runs out halves the batches."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from brief import BRIEF, calibrate_briefly
from gallery import Gallery, named, spoil
from PIL import Image

from ttreg_hf import add_test_time_registers
from ttreg_hf.calibration.calibration_result import CalibrationResult
from ttreg_hf.calibration.calibration_run import inspect_norms
from ttreg_hf.calibration.config import CalibrationConfig, RunConfig
from ttreg_hf.calibration.verification_run import verify_patched
from ttreg_hf.cli import main
from ttreg_hf.images.batches import Batch, ImageBatches
from ttreg_hf.images.decoder import to_pil
from ttreg_hf.images.image_source import open_images
from ttreg_hf.loading import load_model, load_processor
from ttreg_hf.measuring.measurement import measure
from ttreg_hf.measuring.outlier_rule import OutlierRule
from ttreg_hf.measuring.recorder import Recorder, Recording
from ttreg_hf.measuring.tower import VisionTower

from .test_processes import assert_same, calibrate_alone

SHARE = 0.5


def calibrate_spoilt(gallery: Gallery, images: Any, *, share: float = SHARE, **config: Any) -> CalibrationResult:
    run = RunConfig(max_bad_share=share)
    return calibrate_alone(gallery, images=images, run=run, **{"num_images": 28, **config})


def test_unreadable_images_are_left_out_and_named(gallery, spoilt):
    """The others give what they give alone."""
    found = calibrate_spoilt(gallery, spoilt / "folder")
    assert [Path(key).name for key in found.provenance.bad_images] == list(spoil(b""))
    assert found.provenance.images_scored == 23
    torch.testing.assert_close(
        found.scores, calibrate_alone(gallery, num_images=23).scores, rtol=1e-6, atol=1e-6 * float(found.scores.max())
    )


def test_unreadable_images_of_a_stream_are_named_by_their_files(gallery, spoilt):
    found = calibrate_spoilt(
        gallery,
        datasets.load_dataset("webdataset", data_files=str(spoilt / "images.tar"), split="train", streaming=True),
    )
    assert [Path(key).name for key in found.provenance.bad_images] == list(spoil(b""))


def test_workers_and_batch_size_do_not_matter_to_unreadable_images(gallery, spoilt):
    run = RunConfig(max_bad_share=SHARE, workers=1)
    found = calibrate_alone(gallery, images=spoilt / "folder", run=run, num_images=28, batch_size=5)
    assert_same(found, calibrate_spoilt(gallery, spoilt / "folder"))


@pytest.mark.parametrize(("share", "most"), [(0.0, 0), (0.01, 1), (4 / 28, 4)])
def test_too_many_unreadable_images_end_the_run_with_their_names(gallery, spoilt, share, most):
    message = (
        rf"At most {most} of 28 images may be unreadable, got \d: .*0002-corrupt\.png \(OSError: .*`max_bad_share`"
    )
    with pytest.raises(ValueError, match=message):
        calibrate_spoilt(gallery, spoilt / "folder", share=share, batch_size=28)


def test_as_many_as_allowed_may_be_unreadable(gallery, spoilt):
    assert len(calibrate_spoilt(gallery, spoilt / "folder", share=5 / 28).provenance.bad_images) == 5


def test_unreadable_images_are_named_whichever_stage_meets_them(gallery, tmp_path):
    """Also those that only the last stage reads."""
    for file in (gallery.root / "folder").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "0014.png").write_bytes(b"not an image")  # with this seed one of four that verify
    automatic = {"norm_threshold": None, "last_layer": None, "top_k": None}
    found = calibrate_spoilt(gallery, tmp_path, **{"num_images": 23, "seed": 2, **automatic})
    assert [Path(key).name for key in found.provenance.bad_images] == ["0014.png"]


def test_a_stage_whose_images_are_all_unreadable_says_so(gallery):
    tower, rule = VisionTower.of(load_model(str(gallery.model))), OutlierRule(3, gallery.norm_threshold)
    with pytest.raises(ValueError, match="needs at least one readable image, got none"):
        measure(tower, [], rule)


def test_a_checkpoint_is_verified_on_readable_images_and_the_others_are_named(gallery, spoilt):
    said: list[str] = []
    found = calibrate_alone(gallery)
    patched = add_test_time_registers(load_model(str(gallery.model)), found)
    verify_patched(
        patched,
        spoilt / "folder",
        calibration=found,
        config=CalibrationConfig(num_images=28, batch_size=4),
        processor=load_processor(str(gallery.model)),
        run=RunConfig(max_bad_share=SHARE),
        gate=BRIEF,
        say=said.append,
    )
    assert [line.split(":")[0] for line in said] == ["skipped 5 unreadable"]


def test_commands_name_what_they_skipped(gallery, spoilt, tmp_path, capsys):
    given = ["--dataset", str(spoilt / "folder"), "--device", "cpu"]
    arguments = ["calibrate", str(gallery.model), "--output", str(tmp_path / "c"), *given, "--num-images", "500"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert f"skipped 5 unreadable images: {spoilt / 'folder' / '0002-corrupt.png'}, " in out
    assert "asked for 500 images, the data set had 28" in out
    assert main(["inspect", str(gallery.model), *given, "--num-images", "400"]) == 1
    message = capsys.readouterr().err
    assert "At most 4 of 400 images may be unreadable, got 5" in message
    assert "Traceback" not in message
    assert main(["inspect", str(gallery.model), *given, "--num-images", "400", "--max-bad-images", "0.0125"]) == 0
    assert "skipped 5 unreadable" in capsys.readouterr().out


def test_inspecting_names_what_it_skipped(gallery, spoilt):
    said: list[str] = []
    model, processor = load_model(str(gallery.model)), load_processor(str(gallery.model))
    run = RunConfig(max_bad_share=SHARE)
    norms = inspect_norms(model, spoilt / "folder", processor=processor, run=run, say=said.append)
    assert norms.num_images == 23
    (line,) = said
    assert line.startswith("skipped 5 unreadable: ")
    assert "0007-empty.png" in line


def test_nothing_but_unreadable_images_says_why(gallery, tmp_path):
    (tmp_path / "note.png").write_text("not an image")
    with pytest.raises(ValueError, match=r"at least one readable image, got none\..*note\.png is not an image that"):
        calibrate_spoilt(gallery, tmp_path)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow warns of some of the damage, ...
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # ... and of sizes that damage made up
@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "DDS", "SGI"])
def test_no_damage_is_more_than_an_unreadable_image(image_format):
    """Whatever Pillow raises on a damaged file arrives as `OSError`, which is skipped and counted."""
    random = np.random.default_rng(0)
    whole = io.BytesIO()
    Image.fromarray(random.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(whole, image_format)
    for _ in range(100):
        data = bytearray(whole.getvalue())
        for place in random.integers(0, min(len(data), 80), 4):
            data[place] = random.integers(0, 256)
        outcome = _read(bytes(data[: random.integers(1, len(data) + 1)]))
        assert outcome == "RGB" or "Remove it" in outcome


def _read(data: bytes) -> str:
    try:
        return to_pil({"bytes": data, "path": None}).mode
    except OSError as error:
        return str(error)


def _modes() -> dict[str, Image.Image]:
    rgb = Image.fromarray(np.random.default_rng(3).integers(0, 256, (4, 6, 3), dtype=np.uint8))
    turned = rgb.copy()
    turned.getexif()[0x0112] = 6
    wide = Image.fromarray(np.array([[0, 0x1000, 0x8000, 0xFFFF]] * 4, dtype=np.uint16))
    return {
        **{mode: rgb.convert(mode) for mode in ("L", "LA", "RGBA", "CMYK", "P", "1")},
        "16 bits": wide,
        "EXIF": turned,
    }


@pytest.mark.parametrize("is_streaming", [False, True], ids=["map-style", "streaming"])
def test_bytes_in_a_data_set_are_read_in_every_mode(is_streaming):
    """As the image itself is, in RGB and upright."""
    modes = _modes()
    rows = [{"bytes": _bytes_of(image), "path": None} for image in modes.values()]
    table = datasets.Dataset.from_dict({"image": rows}, features=datasets.Features({"image": datasets.Image()}))
    found = open_images(table.to_iterable_dataset() if is_streaming else table)
    for name, raw in zip(modes, found, strict=True):
        assert to_pil(raw).tobytes() == to_pil(Image.open(io.BytesIO(_bytes_of(modes[name])))).tobytes(), name
        assert to_pil(raw).size == ((4, 6) if name == "EXIF" else modes[name].size), name


def _bytes_of(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "TIFF" if image.mode == "CMYK" else "PNG", exif=image.getexif())
    return file.getvalue()


def test_images_without_a_file_are_named_by_their_place():
    rows = [{"bytes": b"not an image", "path": None}, {"bytes": _bytes_of(Image.new("RGB", (4, 4))), "path": None}]
    table = datasets.Dataset.from_dict({"image": rows}, features=datasets.Features({"image": datasets.Image()}))
    batches = ImageBatches(
        open_images(table), _as_tensor, num_images=9, batch_size=2, device=torch.device("cpu"), max_bad_share=1.0
    )
    assert [batch.places for batch in batches] == [(1,)]
    assert [(place, bad.key) for place, bad in batches.bad_images.items()] == [(0, "image 0")]


def _as_tensor(images: Image.Image, return_tensors: str) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.from_numpy(np.array(images)).permute(2, 0, 1)[None] / 255}


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[int]]:
    """Lets a forward pass of more than so many images run out of memory; tells the sizes that were tried."""

    def allow(most: int) -> list[int]:
        tried: list[int] = []
        record = Recorder.__call__

        def run(recorder: Recorder, pixel_values: torch.Tensor) -> Recording:
            tried.append(len(pixel_values))
            if len(pixel_values) > most:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            return record(recorder, pixel_values)

        monkeypatch.setattr(Recorder, "__call__", run)
        return tried

    return allow


@pytest.mark.parametrize("batch_size", [16, 13])
def test_out_of_memory_halves_the_batches_from_then_on(gallery, little_memory, batch_size):
    expected = calibrate_alone(gallery)
    tried, said = little_memory(4), []
    model, processor = load_model(str(gallery.model)), load_processor(str(gallery.model))
    settings = gallery.config(batch_size=batch_size)
    images = named(gallery.images("folder"))
    found = calibrate_briefly(model, images, config=settings, processor=processor, say=said.append)
    assert_same(found, expected)
    halves = {16: [16, 8], 13: [13, 6]}[batch_size]
    assert said == [f"out of memory with {size} images at once, going on with {size // 2}" for size in halves]
    assert [size for size in tried if size > 4] == halves  # each is tried once


def test_one_image_that_does_not_fit_is_an_error(gallery, little_memory):
    little_memory(0)
    with pytest.raises(torch.cuda.OutOfMemoryError, match="out of memory"):
        calibrate_alone(gallery)


def test_a_table_whose_rows_fail_is_not_taken_for_unreadable_images():
    """An error of the source itself is no damage of an image."""

    def failing() -> Iterator[Any]:
        yield torch.zeros(3, 4, 4)
        raise RuntimeError("the connection is gone")

    batches = ImageBatches(
        open_images(failing()), None, num_images=3, batch_size=1, device=torch.device("cpu"), max_bad_share=1.0
    )
    seen: list[Batch] = []
    with pytest.raises(RuntimeError, match="the connection is gone"):
        seen.extend(batches)
    assert batches.bad_images == {}
