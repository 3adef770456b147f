"""Usage, exit codes, and how quickly help comes."""

import json
import subprocess
import sys

import pytest

from .conftest import run, succeed

VERBS = ("quickstart", "inspect", "visualize", "calibrate", "report", "apply", "verify", "evaluate", "list", "env")


def test_help_names_every_verb():
    out = succeed("--help").out
    assert all(verb in out for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_and_debug(verb):
    assert "--debug" in succeed(verb, "--help").out


def test_version_is_one_line():
    out = succeed("--version").out
    assert out.startswith("ttreg ")
    assert out.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("nosuch",),
        ("inspect",),
        ("calibrate", "m"),
        ("visualize", "m"),
        ("inspect", "m", "--dtype", "int8"),
        ("inspect", "m", "--num-images", "0"),
        ("calibrate", "m", "--output", "d", "--max-active-fraction", "2"),
        ("calibrate", "m", "--output", "d", "--norm-threshold", "-1"),
        ("visualize", "m", "i.jpg", "--neuron", "17"),
    ],
)
def test_wrong_usage_exits_2(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ended = run(*arguments)
    assert ended.code == 2
    assert ended.out == ""
    assert ended.err
    assert list(tmp_path.iterdir()) == []


def test_help_version_and_list_import_nothing_heavy():
    """What the command line itself imports: `ttreg_hf/__init__.py` is left out by a stand-in."""
    code = (
        "import sys, types, importlib.util as util; package = types.ModuleType('ttreg_hf'); package.__version__ = '0';"
        "package.__path__ = list(util.find_spec('ttreg_hf').submodule_search_locations);"
        "sys.modules['ttreg_hf'] = package; from ttreg_hf.cli import main;"
        "codes = [main([word]) for word in ('-h', '--version', 'list')];"
        "print(codes, {'torch', 'transformers', 'datasets', 'accelerate', 'matplotlib'} & set(sys.modules))"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert child.stdout.splitlines()[-1] == "[0, 0, 0] set()"


def test_list_names_checkpoints_in_full_with_their_neurons():
    out = succeed("list").out
    row = next(line for line in out.splitlines() if "facebook/dinov2-large" in line)
    assert row.split()[:3] == ["facebook/dinov2-large", "dinov2", "45"]
    assert "google/siglip2-so400m-patch14-224" in out


def test_list_as_json_has_the_recipes():
    listed = json.loads(succeed("list", "--json").out)["checkpoints"]
    large = next(known for known in listed if known["base_model"] == "facebook/dinov2-large")
    assert large["recipe"]["norm_threshold"] == 150
    assert [17, 884] in large["register_neurons"]


def test_env_tells_versions_and_devices():
    found = json.loads(succeed("env", "--json").out)
    assert {"python", "torch", "transformers", "huggingface_hub", "datasets", "accelerate", "ttreg_hf"} <= set(found)
    assert {"platform", "cpus", "gpus"} <= set(found)
    out = succeed("env").out
    assert all(name in out for name in found)


def test_quickstart_runs_the_chain_with_its_options(tmp_path, monkeypatch):
    seen = {}

    def run_quickstart(output, *, overwrite, say, progress):
        seen.update(output=output, overwrite=overwrite)
        say("a line")
        return {"output": str(output)}

    monkeypatch.setattr("ttreg_hf.quickstart.run_quickstart", run_quickstart)
    assert succeed("quickstart", "--output", tmp_path / "q").out == "a line\n"
    assert seen == {"output": tmp_path / "q", "overwrite": False}
    assert json.loads(succeed("quickstart", "--output", tmp_path / "q", "--json").out) == {
        "output": str(tmp_path / "q")
    }
