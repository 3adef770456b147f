"""What `import ttreg_hf` brings, and what it leaves until it is used."""

import subprocess
import sys

import ttreg_hf

CHILD = """
import sys
import ttreg_hf
late = ("ttreg_hf.calibration.driver", "ttreg_hf.hub", "ttreg_hf.from_hub", "datasets", "matplotlib")
assert not set(late) & set(sys.modules), set(late) & set(sys.modules)
from ttreg_hf import calibrate
assert "ttreg_hf.calibration.driver" in sys.modules
"""


def test_every_exported_name_is_there():
    assert [name for name in ttreg_hf.__all__ if not hasattr(ttreg_hf, name)] == []


def test_another_name_is_missing_as_in_any_module():
    assert not hasattr(ttreg_hf, "calibrated")


def test_what_calibrates_and_publishes_is_imported_when_it_is_used():
    child = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, timeout=120)
    assert child.returncode == 0, child.stderr
