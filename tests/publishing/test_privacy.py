"""No file that `apply` or `push` writes says where somebody keeps files, what they are called, or who it was, where.

Names are planted in everything that goes in.
"""

import dataclasses
import io
import json
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors import safe_open
from transformers import BitImageProcessorPil

from ttreg_hf.applying import add_test_time_registers
from ttreg_hf.cli import main
from ttreg_hf.evaluation.evaluation_result import Evaluation, Figure, write_evaluation
from ttreg_hf.images.data_source import DataSource
from ttreg_hf.images.photographs import photograph_paths
from ttreg_hf.loading import load_model
from ttreg_hf.publishing import prepared_checkpoint
from ttreg_hf.publishing.checkpoint import save_checkpoint
from ttreg_hf.publishing.privacy import picture_without_metadata, without_local_names
from ttreg_hf.publishing.published_files import checkpoint_files

SECRET = "smithjohn"  # in every name


def _picture_with_names(path: Path) -> Path:
    note, camera = PngInfo(), Image.Exif()
    note.add_text("Author", SECRET)
    camera[0x013B] = SECRET  # artist
    Image.new("RGB", (8, 8), "red").save(path, pnginfo=note, exif=camera)
    return path


@pytest.fixture
def home(planted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of Smith, John, on his machine: a base model, and photographs of which two cannot be read."""
    for name in ("USER", "LOGNAME", "HOSTNAME", "HF_USER"):
        monkeypatch.setenv(name, SECRET)
    for function in ("platform.node", "socket.gethostname", "getpass.getuser"):
        monkeypatch.setattr(function, lambda: SECRET)
    home = tmp_path / SECRET
    base = home / f"base_{SECRET}"
    planted.model.save_pretrained(base)
    size = {"height": 56, "width": 56}
    BitImageProcessorPil(size={"shortest_edge": 56}, crop_size=size).save_pretrained(base)
    for name in ("config.json", "preprocessor_config.json"):
        fields = json.loads((base / name).read_text()) | {"_name_or_path": str(base), "name_or_path": f"base_{SECRET}"}
        fields |= {"data_dir": str(home), "history": [{"log": f"~/{SECRET}/log"}, f"C:\\Users\\{SECRET}\\log"]}
        fields |= {"url": f"file://host/{SECRET}"}
        (base / name).write_text(json.dumps(fields))
    (home / "photos").mkdir()
    for count in range(30):
        picture = Image.open(photograph_paths()[count % 7]).convert("RGB").rotate(15 * (count // 7))
        picture.save(home / "photos" / f"{SECRET}_{count:02}.jpg")
    for count in (3, 7):
        (home / "photos" / f"{SECRET}_{count:02}.jpg").write_text("broken")
    return home


def _ttreg(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


def _assert_no_names(contents: dict[str, bytes]) -> None:
    assert [name for name, content in contents.items() if SECRET.encode() in content] == []


def test_no_file_that_apply_or_push_writes_holds_a_local_name(home, monkeypatch):
    base = home / f"base_{SECRET}"
    found, checkpoint = home / "found", home / f"checkpoint_{SECRET}"
    options = ("--dataset", home / "photos", "--max-bad-images", "0.5", "--top-k", "2", "--norm-threshold", "5")
    _ttreg("calibrate", base, "--output", found, *options)
    bad = json.loads((found / "calibration.json").read_text())["provenance"]["bad_images"]
    assert len(bad) == 2
    assert SECRET in bad[0]
    _ttreg("apply", base, "--calibration", found, "--output", checkpoint, "--force")
    names = checkpoint_files(checkpoint)
    assert {"config.json", "calibration.json", "preprocessor_config.json", "README.md"} < names.keys()
    assert any(name.startswith("pictures/") for name in names)
    _assert_no_names({str(path): path.read_bytes() for path in checkpoint.rglob("*") if path.is_file()})
    for name in ("model.safetensors", "calibration.safetensors"):
        with safe_open(names[name], "pt") as tensors:
            assert SECRET not in str(tensors.metadata())

    # and what was put there by hand, or measured, before it is pushed
    write_evaluation(checkpoint, _evaluation(home))
    _picture_with_names(checkpoint / "pictures" / "own.png")
    fields = json.loads((checkpoint / "preprocessor_config.json").read_text())
    (checkpoint / "preprocessor_config.json").write_text(json.dumps(fields | {"cache": str(home)}))
    monkeypatch.setattr(prepared_checkpoint, "check_outputs", lambda folder, trust_remote_code: 0.0)
    sent = prepared_checkpoint.prepare(checkpoint, None, config_only=False, force=True, trust_remote_code=False)
    contents = {
        name: content if isinstance(content, bytes) else content.read_bytes()
        for name, content in sent.contents.items()
    }
    assert {"evaluation.json", "pictures/own.png"} < contents.keys()
    _assert_no_names(contents)
    assert SECRET not in str([sent.notes, sent.calibration, sent.evaluations])


def _evaluation(home: Path) -> Evaluation:
    return Evaluation(
        task="segmentation",
        settings={},
        hub_task=None,
        source=DataSource(local=f"photos_{SECRET}"),
        model=f"checkpoint_{SECRET}",
        base_model=None,
        trained_registers=str(home / "other"),
        num_images=3,
        num_training_images=0,
        bad_images=(f"{SECRET}.jpg",),
        image_size=None,
        confidence=0.95,
        seed=0,
        figures=(Figure("mIoU", "", "patched", 0.5, 0.4, 0.6),),
        versions={},
        created="2026-01-01",
    )


def test_files_written_from_python_hold_no_local_name(home, result, monkeypatch):
    monkeypatch.chdir(home)
    model = load_model(f"base_{SECRET}")  # by a relative path
    provenance = dataclasses.replace(
        result.provenance,
        model=f"base_{SECRET}",
        source=DataSource(local="photos"),
        bad_images=(f"{SECRET}.jpg", f"photos/{SECRET}.jpg"),
    )
    calibration = dataclasses.replace(result, provenance=provenance)
    picture = _picture_with_names(home / "own.png")
    patched = add_test_time_registers(model, result.register_neurons)
    folder = save_checkpoint(patched, "checkpoint", calibration=calibration, pictures=[picture])
    _assert_no_names({name: path.read_bytes() for name, path in checkpoint_files(folder).items()})


def test_names_of_public_images_stay(result):
    from ttreg_hf.publishing.privacy import calibration_without_local_names

    names = ("train/a.jpg", "hf://datasets/org/photos@main/b.jpg", f"/home/{SECRET}/.cache/c.jpg")
    provenance = dataclasses.replace(result.provenance, source=DataSource(repo_id="org/photos"), bad_images=names)
    public = calibration_without_local_names(dataclasses.replace(result, provenance=provenance)).provenance
    assert public.bad_images == (*names[:2], "a local file")


@pytest.mark.parametrize(
    "value",
    [
        *(
            "gelu",
            "channels_first/last",
            "https://example.org/x",
            "{{ bos }}/think\n/home/x",
            "/",
            "//",
            "</s>",
            "a/b",
        ),
        *("org/model", "LICENSE.md", "~", "10:30", "C:", "1/255"),
    ],
)
def test_values_that_are_no_paths_stay(value):
    fields = {"a": value, "b": [{"c": value}]}
    assert without_local_names(fields) == fields


@pytest.mark.parametrize(
    "value",
    [
        *("/home/x", "/x", "~/x", "~x/y", "C:\\x", "c:/x", "\\\\host\\x", "file:///x", "file:x"),
        "tests/../tests",  # relative, and there
    ],
)
def test_values_that_are_paths_go(value, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    assert without_local_names({"a": value, "b": [{"c": value}]}) == {
        "a": "a local file",
        "b": [{"c": "a local file"}],
    }


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_pictures_keep_their_looks_and_lose_the_rest(tmp_path, kind):
    camera = Image.Exif()
    camera[0x013B], camera[0x0112] = SECRET, 6  # artist, and turned by a quarter
    Image.new("RGB", (8, 4), "red").save(tmp_path / "picture", kind, exif=camera)
    content = picture_without_metadata(tmp_path / "picture")
    assert SECRET.encode() not in content
    with Image.open(io.BytesIO(content)) as picture:
        assert (picture.format, picture.size, dict(picture.getexif())) == (kind, (4, 8), {})
        assert all(abs(a - b) < 9 for a, b in zip(picture.convert("RGB").getpixel((1, 1)), (255, 0, 0), strict=True))


def test_what_is_no_picture_is_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(b"png")
    with pytest.raises(ValueError, match=r"are PNG, JPEG or WebP, but .*/a\.png is none of these\. Save it as PNG"):
        picture_without_metadata(tmp_path / "a.png")
