"""Forks of a process that has imported PyTorch already are, for what they run, fresh interpreters."""

import json

import pytest
from warm import run_warm

EARLY = ("transformers", "huggingface_hub", "datasets", "ttreg_hf")  # would have read another environment


def test_source_runs_as_a_fresh_interpreter_runs_it(tmp_path):
    source = (
        "import json, os, sys\n"
        f"early = [name for name in {EARLY} if name in sys.modules]\n"
        "print(json.dumps([early, __name__, sys.argv, os.getcwd(), dict(os.environ), sys.path[:2], sys.stdin.read()]))"
    )
    ended = run_warm(source, 1, "b c", env={"A": "1", "PYTHONPATH": "/x"}, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    variables = {"A": "1", "PYTHONPATH": "/x"}
    told = json.loads(ended.stdout)
    assert told == [[], "__main__", ["-c", "1", "b c"], str(tmp_path), variables, ["", "/x"], ""]


def test_one_leaves_nothing_to_the_next(tmp_path):
    run_warm("import sys, os\nsys.modules['ttreg_hf'] = None\nos.environ['A'] = '1'", env={}, cwd=tmp_path)
    source = "import os, sys\nprint('ttreg_hf' in sys.modules, 'A' in os.environ)"
    assert run_warm(source, env={}, cwd=tmp_path).stdout.split() == ["False", "False"]


@pytest.mark.parametrize(
    ("source", "code", "said"),
    [("1 / 0", 1, "ZeroDivisionError"), ("raise SystemExit('no')", 1, "no"), ("raise SystemExit(3)", 3, "")],
)
def test_errors_and_codes_are_those_of_python(tmp_path, source, code, said):
    ended = run_warm(source, env={}, cwd=tmp_path)
    assert ended.returncode == code
    assert ended.stderr.strip().rpartition("\n")[2].startswith(said)


def test_what_takes_too_long_is_killed(tmp_path):
    assert run_warm("import time; time.sleep(60)", env={}, cwd=tmp_path, timeout=0.5).returncode == -9
