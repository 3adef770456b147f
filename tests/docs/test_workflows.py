"""What CI calls exists: sessions of the workflows and of the texts, and tests that sessions name."""

import ast
import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
NOXFILE = (ROOT / "noxfile.py").read_text(encoding="utf-8")
SESSIONS = {node.name for node in ast.parse(NOXFILE).body if isinstance(node, ast.FunctionDef)}
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def _sessions(workflow: Path) -> set[str]:
    matrix = yaml.safe_load(workflow.read_text(encoding="utf-8"))["jobs"]["nox"]["strategy"]["matrix"]
    return {*matrix["session"], *(each["session"] for each in matrix["include"])}


def test_workflows_run_sessions_that_exist_and_leave_none_out() -> None:
    called = set().union(*map(_sessions, WORKFLOWS))
    assert called == SESSIONS - {"constraints"}, "only the session that writes the constraints is run by hand"


def test_sessions_that_texts_name_exist() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / ".github").rglob("*.md")]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    named = {name for names in re.findall(r"`nox -s ([\w ]+)`", text) for name in names.split()}
    assert len(named) > 3
    assert named <= SESSIONS


def test_constraints_hold_the_pin_of_torch() -> None:
    pin = re.search(r'"(torch==[\d.]+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert pin is not None
    assert pin.group(1) in (ROOT / ".ci" / "constraints.txt").read_text(encoding="utf-8").splitlines()
