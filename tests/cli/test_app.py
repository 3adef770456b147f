"""Usage, exit codes, and how quickly help comes."""

import json
import os
import subprocess
import sys

import pytest

from ttreg_hf.cli.app import _VERBS

from .conftest import run, succeed

VERBS = tuple(verb.name for verb in _VERBS)


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


QUICK = ([], ["-h"], ["--version"], ["list"], ["nosuch"], ["calibrate", "-h"], ["evaluate", "-h"], ["inspect"])
HEAVY = ("torch", "transformers", "numpy", "huggingface_hub", "datasets", "accelerate", "matplotlib", "safetensors")
MOST_MODULES = 440  # beside those of an idle interpreter, which may be one that counts coverage


@pytest.mark.parametrize("arguments", QUICK, ids=" ".join)
def test_what_answers_at_once_imports_little(arguments):
    code = (
        "import sys; before = set(sys.modules); from ttreg_hf.cli import main; main(sys.argv[1:]);"
        "ours = set(sys.modules) - before; sys.stderr.write(f'\\n{len(ours)} ' + ' '.join(ours))"
    )
    child = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)
    count, *names = child.stderr.splitlines()[-1].split()
    assert set(HEAVY) & set(names) == set()
    if arguments != ["inspect"]:  # a value that is checked takes pydantic, with typer
        assert "pydantic" not in names
        assert int(count) <= MOST_MODULES


def test_help_imports_no_verb():
    code = (
        "import sys; from ttreg_hf.cli import main; main(['-h']);"
        "print([name for name in sys.modules if name.endswith('_command')])"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert child.stdout.splitlines()[-1] == "[]"


def test_help_shows_the_verbs_that_people_use_first_and_one_line_each():
    first, _, others = succeed("--help").out.partition("More commands")
    of_list = {verb: [line for line in (first + others).splitlines() if f"│ {verb} " in line] for verb in VERBS}
    assert {verb: len(lines) for verb, lines in of_list.items()} == dict.fromkeys(VERBS, 1)
    used = ["quickstart", "inspect", "calibrate", "apply", "visualize", "evaluate", "push"]
    places = [first.index(of_list[verb][0]) for verb in used]
    assert places == sorted(places)
    assert all(of_list[verb][0] in others for verb in set(VERBS) - set(used))


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_of_the_list_is_there(verb):
    assert f"ttreg {verb} " in succeed(verb, "--help").out


@pytest.mark.parametrize("verb", _VERBS, ids=VERBS)
def test_ten_options_come_first_and_each_is_explained_in_a_sentence(verb):
    options = [param for param in verb.real_command().params if param.opts[0].startswith("--")]
    first = [param.name for param in options if param.rich_help_panel is None]
    assert len(set(first) - {"debug"}) <= 10, first
    for param in options:
        assert param.help.endswith("."), param.name
        assert len(param.help.split()) >= 3, param.name
    assert {"token", "revision", "seed", "workers", "image_column"} & set(first) <= {"token", "revision"}


def test_a_mistyped_verb_is_answered_with_the_one_that_is_meant():
    ended = run("calibrat")
    assert ended.code == 2
    assert "Did you mean 'calibrate'" in ended.err


@pytest.mark.parametrize(
    ("words", "at", "expected"), [("ttreg ca", 1, "calibrate"), ("ttreg inspect --norm", 2, "--norm-threshold")]
)
def test_shells_complete_verbs_and_options(words, at, expected):
    environment = os.environ | {"_TTREG_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(at)}
    child = subprocess.run(
        [sys.executable, "-m", "ttreg_hf"], capture_output=True, text=True, timeout=60, env=environment
    )
    assert child.stdout.split() == [expected]


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
