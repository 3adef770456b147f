"""One planted checkpoint, its calibration and its patched twin, made once; what tests write lies elsewhere."""

import contextlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from benchmarks.planted_kinds import make_known_model
from PIL import Image
from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model

from ttreg_hf.cli import main
from ttreg_hf.images.photographs import load_photographs
from ttreg_hf.images.scenes import draw_scene
from ttreg_hf.planted import planted_model

SIZE = 112
NORM_THRESHOLD = 20  # seven photographs are too few to show two populations
PICTURES = 48  # enough for every verdict


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


@pytest.fixture(autouse=True)
def _no_interpreter_starts_cold(forked_interpreters: None) -> None:
    """To verify a checkpoint."""


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shelf")


def _processor() -> BitImageProcessorPil:
    crop = {"height": SIZE, "width": SIZE}
    return BitImageProcessorPil(size={"shortest_edge": SIZE}, crop_size=crop, do_center_crop=True)


@pytest.fixture(scope="session")
def pictures(shelf: Path) -> Path:
    """A folder of independent pictures: the bundled photographs and drawn scenes, small."""
    folder = shelf / "a folder"
    folder.mkdir()
    photographs = [photograph.resize((SIZE, SIZE)) for photograph in load_photographs()]
    scenes = [draw_scene(number, size=SIZE) for number in range(PICTURES - len(photographs))]
    for number, picture in enumerate([*photographs, *scenes]):
        picture.save(folder / f"{number:02d}.png")
    return folder


@pytest.fixture(scope="session")
def base(shelf: Path, pictures: Path) -> Path:
    """A stock checkpoint with planted register neurons in layer 2."""
    opened = [Image.open(path).convert("RGB") for path in sorted(pictures.iterdir())]
    pixel_values = _processor()(images=opened, return_tensors="pt")["pixel_values"]
    planted = planted_model("dinov2", trigger="low_information", images=pixel_values)
    planted.model.save_pretrained(shelf / "base")
    _processor().save_pretrained(shelf / "base")
    return shelf / "base"


@pytest.fixture(scope="session")
def quiet(shelf: Path) -> Path:
    """A stock checkpoint without outliers."""
    config = Dinov2Config(
        hidden_size=64, num_hidden_layers=3, num_attention_heads=2, image_size=SIZE, patch_size=14, mlp_ratio=2
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = Dinov2Model(config)
        model.embeddings.position_embeddings.normal_()
        model.embeddings.patch_embeddings.projection.weight.mul_(0.1)
        model.save_pretrained(shelf / "quiet")
    _processor().save_pretrained(shelf / "quiet")
    return shelf / "quiet"


@pytest.fixture(scope="session")
def spiked(shelf: Path) -> Path:
    """A stock checkpoint whose position table has three spikes."""
    known = make_known_model("siglip", "table spikes", trigger="bright", seed=1)
    known.model.save_pretrained(shelf / "spiked")
    settings = {"size": {"height": SIZE, "width": SIZE}, "image_processor_type": "SiglipImageProcessor"}
    (shelf / "spiked" / "preprocessor_config.json").write_text(json.dumps(settings))
    return shelf / "spiked"


@pytest.fixture(scope="session")
def calibration(base: Path, pictures: Path, shelf: Path) -> Path:
    succeed("calibrate", base, "--output", shelf / "calibration", "--dataset", pictures)
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
