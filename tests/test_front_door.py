"""What `import ttreg_hf` brings, and what it leaves until it is used."""

import json
import subprocess
import sys
from typing import Any

import pytest
from families import CASES
from modeling.laws import patched_model

import ttreg_hf
from ttreg_hf import modeling

LATE = (
    "ttreg_hf.modeling.modeling_ttreg",
    "ttreg_hf.calibration.calibration_run",
    "ttreg_hf.publishing.push",
    "ttreg_hf.publishing.published_model",
    "datasets",
    "matplotlib",
)
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
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a fresh interpreter has imported, step by step."""
    folder = tmp_path_factory.mktemp("vit")
    case = next(case for case in CASES if case.stock_class.__name__ == "ViTModel")
    patched_model(modeling, case, case.stock_model()).save_pretrained(folder)
    command = [sys.executable, "-c", CHILD, str(folder), *LATE]
    child = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert child.returncode == 0, child.stderr
    return json.loads(child.stdout.splitlines()[-1])


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
