"""Every Python block of README and manual runs, in order, one namespace a page, against a stand-in for the Hub.

The ids that pages name are tiny models there: a planted DINOv2, a wide one that takes the published neurons, a LLaVA.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from local_hub import LocalHub
from outer_models import OUTER_MODELS
from PIL import Image
from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model, PreTrainedModel
from warm import run_warm

from docs.pages import NAMES, PAGES, ROOT, blocks
from ttreg_hf.planted import planted_model, synthetic_images

NUM_PHOTOGRAPHS = 32
MEAN, STD = 0.5, 1 / 6  # 8 bits hold values from -3 to 3
CARD = b"---\nlicense: apache-2.0\n---\n"  # as facebook/dinov2-large has it
WIDE = Dinov2Config(
    hidden_size=8, num_hidden_layers=24, num_attention_heads=2, mlp_ratio=512, image_size=112, patch_size=14
)
PREPARE = """
from ttreg_hf import ModelSource, calibrate_to_folder, make_checkpoint
from ttreg_hf.publishing import prepared_checkpoint
from ttreg_hf.publishing.push import push_checkpoint

prepared_checkpoint.check_outputs = lambda directory, trust_remote_code: 0.0  # a block of a page does it

result = calibrate_to_folder("facebook/dinov2-base", "photos", "found")
make_checkpoint(ModelSource("facebook/dinov2-base"), "dinov2-base-ttreg", calibration=result)
push_checkpoint("dinov2-base-ttreg", "ORG/dinov2-base-ttreg", tag="v1", config_only=False)
push_checkpoint("dinov2-base-ttreg", "ORG/dinov2-base-ttreg-config", config_only=True)
"""
RUN = """
import json, linecache, pathlib, sys, traceback
import torch

torch.set_num_threads(1)
outcomes = {}
for page, pieces in json.loads(pathlib.Path("blocks.json").read_text()).items():
    names = {"__name__": "__main__"}
    outcomes[page] = None
    for line, text in pieces:
        where = f"{page}, line {line}"
        linecache.cache[where] = (len(text), None, text.splitlines(keepends=True), where)
        try:
            exec(compile(text, where, "exec"), names)
        except Exception:
            outcomes[page] = traceback.format_exc()
            break
pathlib.Path("outcomes.json").write_text(json.dumps(outcomes))
"""


def _files(model: PreTrainedModel, folder: Path) -> dict[str, bytes]:
    model.save_pretrained(folder)
    BitImageProcessorPil(
        do_resize=False, do_center_crop=False, image_mean=[MEAN] * 3, image_std=[STD] * 3
    ).save_pretrained(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()} | {"README.md": CARD}


def _photographs(folder: Path) -> None:
    folder.mkdir()
    for place, pixels in enumerate(synthetic_images(NUM_PHOTOGRAPHS, seed=99)):
        bytes_HW3 = ((pixels * STD + MEAN).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(np.ascontiguousarray(bytes_HW3)).save(folder / f"{place:02d}.png")


@pytest.fixture(scope="module")
def hub() -> Iterator[LocalHub]:
    with LocalHub() as running:
        yield running
        assert running.unknown_requests == []


@pytest.fixture(scope="module")
def outcomes(hub: LocalHub, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """By page: the traceback of the block that failed, or `None`."""
    folder = tmp_path_factory.mktemp("reader")
    models = {
        "facebook/dinov2-base": planted_model("dinov2", num_hidden_layers=9).model,  # its recipe looks at block 8
        "facebook/dinov2-large": Dinov2Model(WIDE),
        "llava-hf/llava-1.5-7b-hf": OUTER_MODELS["llava"].stock(),
    }
    for name, model in models.items():
        hub.add_repository(name, _files(model, tmp_path_factory.mktemp("model")))
    _photographs(folder / "photos")
    Image.open(folder / "photos" / "00.png").save(folder / "my.jpg", quality=95)
    pieces = {
        name: [(block.line, block.text) for block in blocks(page, "python") if block.reason is None]
        for name, page in zip(NAMES, PAGES, strict=True)
    }
    (folder / "blocks.json").write_text(json.dumps(pieces))
    for source in (PREPARE, RUN):
        _run(source, folder, hub)
    return json.loads((folder / "outcomes.json").read_text())


def _run(source: str, folder: Path, hub: LocalHub) -> None:
    environment = hub.environment(folder / "cache", token=hub.token)
    child = run_warm(source, env=environment, cwd=folder, timeout=900)
    assert child.returncode == 0, child.stderr


@pytest.mark.parametrize("page", NAMES)
def test_python_blocks_run(page: str, outcomes: dict[str, Any]) -> None:
    assert outcomes[page] is None, outcomes[page]


def test_what_is_not_run_has_a_reason_and_is_little() -> None:
    python = [block for page in PAGES for block in blocks(page, "python")]
    assert len(python) >= 15
    elsewhere = "docs/other-tools.md"  # tests/test_other_tools.py runs what needs other packages
    assert {block.page for block in python if block.reason} <= {"docs/deploy.md", elsewhere}


def test_docstrings_hold_no_examples_because_nothing_runs_them_there() -> None:
    sources = [*(ROOT / "ttreg_hf").rglob("*.py"), *(ROOT / "scripts").rglob("*.py")]
    assert [path for path in sources if re.search(r"^\s*(>>> |```)", path.read_text(encoding="utf-8"), re.M)] == []
