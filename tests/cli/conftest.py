"""One planted checkpoint, its calibration and its patched twin, made once; what tests write lies elsewhere."""

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from transformers import BitImageProcessorPil

from ttreg_hf.cli import main
from ttreg_hf.images.photographs import load_photographs
from ttreg_hf.planted import planted_model

SIZE = 112
NORM_THRESHOLD = 20  # seven images are too few to show two populations


@dataclass(frozen=True)
class Ended:
    """What a command left behind."""

    code: int
    out: str
    err: str


def run(*arguments: object) -> Ended:
    """A command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(argument) for argument in arguments])
    return Ended(code, out.getvalue(), err.getvalue())


def succeed(*arguments: object) -> Ended:
    """A command in this process, which must exit 0."""
    ended = run(*arguments)
    assert ended.code == 0, ended.err
    return ended


def without_waiting(err: str) -> str:
    """What stderr says, without the lines that say what takes long, such as `loading the model ...`."""
    return "".join(line for line in err.splitlines(keepends=True) if not line.endswith(" ...\n"))


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shelf")


@pytest.fixture(scope="session")
def base(shelf: Path) -> Path:
    """A stock checkpoint with planted register neurons in layer 2."""
    crop = {"height": SIZE, "width": SIZE}
    processor = BitImageProcessorPil(size={"shortest_edge": SIZE}, crop_size=crop, do_center_crop=True)
    pixel_values = processor(images=load_photographs(), return_tensors="pt")["pixel_values"]
    planted = planted_model("dinov2", trigger="low_information", images=pixel_values)
    planted.model.save_pretrained(shelf / "base")
    processor.save_pretrained(shelf / "base")
    return shelf / "base"


@pytest.fixture(scope="session")
def calibration(base: Path, shelf: Path) -> Path:
    succeed("calibrate", base, "--output", shelf / "calibration", "--norm-threshold", NORM_THRESHOLD)
    return shelf / "calibration"


@pytest.fixture(scope="session")
def checkpoint(base: Path, calibration: Path, shelf: Path) -> Path:
    succeed("apply", base, "--calibration", calibration, "--output", shelf / "checkpoint")
    return shelf / "checkpoint"


@pytest.fixture
def known(base: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes the stock checkpoint a known one, with fields of our choice."""
    import dataclasses

    from ttreg_hf.known.checkpoints import known_checkpoint

    def make_known(**fields: object) -> None:
        template = known_checkpoint("facebook/dinov2-large")
        entry = dataclasses.replace(template, base_model=str(base), **fields)
        for module in ("applying", "cli.inputs", "pictures.visualization", "images.data_sets"):
            monkeypatch.setattr(f"ttreg_hf.{module}.known_checkpoint", {str(base): entry}.get)

    return make_known
