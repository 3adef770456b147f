"""What `import ttreg_hf` brings, and what it leaves until it is used."""

import subprocess
import sys

from families import CASES
from modeling.laws import patched_model

import ttreg_hf
from ttreg_hf import modeling

CHILD = """
import pathlib, sys
import ttreg_hf
late = ("ttreg_hf.calibration.driver", "ttreg_hf.hub", "ttreg_hf.from_hub", "datasets", "matplotlib")
assert not set(late) & set(sys.modules), set(late) & set(sys.modules)
families = {path.stem for path in pathlib.Path(ttreg_hf.modeling.__file__).parent.glob("modeling_*.py")}
loaded = {name.rpartition(".")[2] for name in sys.modules if name.startswith("ttreg_hf.modeling.modeling_")}
assert len(families) > 10 and not loaded, loaded
from ttreg_hf import calibrate
assert "ttreg_hf.calibration.driver" in sys.modules
"""

LOADING_CHILD = """
import sys
import ttreg_hf
from transformers import AutoConfig, AutoModel
model = AutoModel.from_pretrained(sys.argv[1])
configured = AutoConfig.for_model("vit_ttreg")
brought = [name for name in sys.modules if name.startswith("ttreg_hf.modeling.modeling_")]
print(type(model).__name__, type(configured).__name__, *brought)
"""


def test_every_exported_name_is_there():
    assert [name for name in ttreg_hf.__all__ if not hasattr(ttreg_hf, name)] == []


def test_another_name_is_missing_as_in_any_module():
    assert not hasattr(ttreg_hf, "calibrated")


def test_what_calibrates_and_publishes_is_imported_when_it_is_used():
    child = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, timeout=120)
    assert child.returncode == 0, child.stderr


def test_a_checkpoint_brings_its_own_family_alone(tmp_path):
    case = next(case for case in CASES if case.stock_class.__name__ == "ViTModel")
    patched_model(modeling, case, case.stock_model()).save_pretrained(tmp_path)
    child = subprocess.run(
        [sys.executable, "-c", LOADING_CHILD, str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert child.returncode == 0, child.stderr
    assert child.stdout.split() == ["ViTTTRegModel", "ViTTTRegConfig", "ttreg_hf.modeling.modeling_vit_ttreg"]
