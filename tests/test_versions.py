"""Which releases of transformers are taken, and how the script that compares them counts and compares."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from families import BARE_CASES
from modeling.laws import patched_model

from ttreg_hf import modeling
from ttreg_hf.benchmarks.versions import Exchanged, exchange_table, largest_difference, read_results
from ttreg_hf.benchmarks.versions import tests_table as table_of_tests

# transformers of another release, as far as the check of the release can tell
AS_IF_OLD = """
import importlib.metadata
real = importlib.metadata.version
importlib.metadata.version = lambda name: "5.17.0" if name == "transformers" else real(name)
"""
TOO_OLD = "transformers>=5.18 is required"
REMEDY = "Test-time registers need it: `pip install -U transformers`."


def _ends_with(source, *arguments):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    child = subprocess.run(
        [sys.executable, "-c", AS_IF_OLD + source, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        stdin=subprocess.DEVNULL,
        timeout=120,
    )
    assert child.returncode == 1
    return child.stderr


def test_too_old_a_transformers_is_told_on_import():
    said = _ends_with("import ttreg_hf")
    assert TOO_OLD in said
    assert said.strip().endswith(REMEDY)


def test_too_old_a_transformers_is_told_before_a_published_checkpoint_reads_its_weights(tmp_path, monkeypatch):
    """One family stands for all: the check is in a file that they share."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    folder = tmp_path / "checkpoint"
    patched_model(modeling, BARE_CASES[0], BARE_CASES[0].stock_model()).save_pretrained(folder)
    (folder / "model.safetensors").write_bytes(b"not weights")
    source = (
        "import sys\nsys.modules['ttreg_hf'] = None\nfrom transformers import AutoModel\n"
        "AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)"
    )
    said = _ends_with(source, folder)
    assert TOO_OLD in said
    assert said.strip().endswith(REMEDY)


def test_the_floor_is_the_same_wherever_it_is_written():
    root = Path(__file__).parents[1]
    assert '"transformers>=5.18,<6"' in (root / "pyproject.toml").read_text(encoding="utf-8")


def test_results_of_pytest_are_counted(tmp_path):
    cases = "".join(
        f'<testcase classname="tests.t" name="{name}">{inner}</testcase>'
        for name, inner in (
            ("good", ""),
            ("bad", "<failure/>"),
            ("broken", "<error/>"),
            ("left", '<skipped message="no GPU"/>'),
        )
    )
    (tmp_path / "tests.xml").write_text(f"<testsuites><testsuite>{cases}</testsuite></testsuites>")
    tested = read_results(tmp_path / "tests.xml", {"huggingface_hub": "2.4.0"})
    assert (tested.passed, tested.failed, tested.skipped) == (1, 2, 1)
    assert tested.failures == ["tests.t::bad", "tests.t::broken"]
    assert tested.reasons == {"no GPU": 1}
    assert "| 5.18.0 | 2.4.0 | 1 | 2 | 1 |" in table_of_tests({"5.18.0": tested})


def test_outputs_are_compared_by_the_scale_of_each():
    ours = {"vit": {"small": [[0.1, 0.0]], "large": [[100.0, 1.0]]}}
    theirs = {"vit": {"small": [[0.1, 0.01]], "large": [[100.0, 1.01]]}}
    assert largest_difference(ours, ours) == 0
    assert largest_difference(ours, theirs) == pytest.approx(0.1)


def test_a_missing_family_or_output_is_no_equality():
    ours = {"vit": {"logits": [[1.0]]}}
    for theirs in ({}, {"vit": {}}, {**ours, "deit": ours["vit"]}):
        with pytest.raises(ValueError, match="same families and outputs"):
            largest_difference(ours, theirs)


def test_the_table_of_exchanges_says_what_differs():
    found = [Exchanged("1", "1", code, 1, 0.0) for code in (False, True)]
    found += [Exchanged("1", "2", False, 1, 0.5), Exchanged("1", "2", True, error="no")]
    assert (
        exchange_table(found).splitlines()[-1] == "| 1 | equal (0e+00) / equal (0e+00) | different (5e-01) / error |"
    )
    assert not any(one.is_equal for one in found[2:])
