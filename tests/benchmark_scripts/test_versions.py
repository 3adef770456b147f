"""Which releases of transformers are taken, and how checkpoints that another release wrote are compared."""

import json
import os
from pathlib import Path

import pytest
from benchmarks import exchange
from benchmarks.planted_kinds import FAMILIES
from families import BARE_CASES
from modeling.laws import patched_model
from warm import run_warm

from ttreg_hf import modeling

# transformers of another release, as far as the check of the release can tell
AS_IF_OLD = """
import importlib.metadata
real = importlib.metadata.version
importlib.metadata.version = lambda name: "5.17.0" if name == "transformers" else real(name)
"""
TOO_OLD = "transformers>=5.18 is required"
REMEDY = "Test-time registers need it: `pip install -U transformers`."


def _ends_with(source, *arguments):
    child = run_warm(AS_IF_OLD + source, *arguments, env={**os.environ, "HF_HUB_OFFLINE": "1"}, cwd=Path.cwd())
    assert child.returncode == 1
    return child.stderr


@pytest.mark.parametrize("name", ["calibrate", "add_test_time_registers", "Dinov2TTRegModel"])
def test_too_old_a_transformers_is_told_at_first_use(name):
    said = _ends_with(f"import ttreg_hf\nttreg_hf.{name}")
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
    root = Path(__file__).parents[2]
    assert '"transformers>=5.18,<6"' in (root / "pyproject.toml").read_text(encoding="utf-8")


def test_an_exchange_of_checkpoints_compares_and_fails_where_outputs_differ(tmp_path, monkeypatch):
    monkeypatch.setattr(exchange, "FAMILIES", {"vit": FAMILIES["vit"]})
    exchange.main("write", tmp_path)
    assert exchange.read_checkpoints(tmp_path) == {"vit": (0.0, 0.0)}
    exchange.main("read", tmp_path)
    written = tmp_path / "vit" / "outputs.json"
    outputs = json.loads(written.read_text())
    outputs["pooler_output"][0][0] += 1e-3
    written.write_text(json.dumps(outputs))
    with pytest.raises(SystemExit):
        exchange.main("read", tmp_path)


def test_an_exchange_that_read_nothing_fails(tmp_path):
    with pytest.raises(SystemExit):
        exchange.main("read", tmp_path)
