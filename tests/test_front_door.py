"""What `import ttreg_hf` brings, and what it leaves until it is used."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from families import CASES
from modeling.laws import patched_model
from warm import run_warm

import ttreg_hf
from ttreg_hf import modeling

LATE = (
    "torch",
    "transformers",
    "ttreg_hf.modeling.modeling_ttreg",
    "ttreg_hf.calibration.calibration_run",
    "ttreg_hf.publishing.push",
    "ttreg_hf.publishing.published_model",
    "datasets",
    "matplotlib",
)
TRANSFORMERS_FIRST = """
import json, sys
import transformers
from transformers import AutoConfig, AutoImageProcessor, AutoModel  # the Auto classes are there before ttreg_hf is
import ttreg_hf
told = {"model": type(AutoModel.from_pretrained(sys.argv[1])).__name__}
told["config"] = type(AutoConfig.from_pretrained(sys.argv[1])).__name__
print(json.dumps(told))
"""
CHILD = """
import json, sys

def imported():
    return sorted(name for name in sys.modules if name in LATE)

LATE = sys.argv[2:]
import ttreg_hf
told = {"at first": imported()}
from transformers import AutoConfig, AutoModel
told["model"] = type(AutoModel.from_pretrained(sys.argv[1])).__name__
told["config"] = type(AutoConfig.for_model("vit_ttreg")).__name__
modeling = sys.modules["ttreg_hf.modeling.modeling_ttreg"]
told["classes"] = [name for name in vars(modeling) if "TTReg" in name and not name.endswith("Mixin")]
from ttreg_hf import calibrate
told["to calibrate"] = imported()
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vit")
    case = next(case for case in CASES if case.stock_class.__name__ == "ViTModel")
    patched_model(modeling, case, case.stock_model()).save_pretrained(folder)
    return folder


def _said(child: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert child.returncode == 0, child.stderr
    return json.loads(child.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def told(checkpoint: Path) -> dict[str, Any]:
    """What a fresh interpreter has imported, step by step."""
    command = [sys.executable, "-c", CHILD, str(checkpoint), *LATE]
    return _said(subprocess.run(command, capture_output=True, text=True, timeout=120))


def test_every_exported_name_is_there():
    assert [name for name in ttreg_hf.__all__ if not hasattr(ttreg_hf, name)] == []


def test_another_name_is_missing_as_in_any_module():
    assert not hasattr(ttreg_hf, "calibrated")


def test_what_patches_calibrates_and_publishes_is_imported_when_it_is_used(told):
    assert told["at first"] == []
    assert "ttreg_hf.calibration.calibration_run" in told["to calibrate"]


def test_a_checkpoint_brings_its_own_family_alone(told):
    assert (told["model"], told["config"]) == ("ViTTTRegModel", "ViTTTRegConfig")
    assert {"ViTTTRegModel", "ViTTTRegForImageClassification"} <= set(told["classes"])
    assert [name for name in told["classes"] if not name.startswith("ViTTTReg")] == []


def test_a_checkpoint_loads_without_the_flag_where_transformers_was_imported_first(checkpoint):
    child = run_warm(TRANSFORMERS_FIRST, checkpoint, env=os.environ, cwd=checkpoint.parent)
    assert _said(child) == {"model": "ViTTTRegModel", "config": "ViTTTRegConfig"}
