"""The suitcase: which files travel, what they import, and that a stranger's interpreter loads them."""

import ast
import io
import json
import os
import re
import sys
import tokenize
from pathlib import Path

import pytest
import torch
import transformers
from families import BARE_CASES, CASES, LAW_CASES, PIXIO_BACKBONE, images, inputs
from warm import run_warm

import ttreg_hf.modeling
from modeling.laws import assert_equal_outputs, flat_tensors, patched_class, patched_model
from ttreg_hf import modeling
from ttreg_hf.known.auto_classes import stock_classes
from ttreg_hf.modeling.families import FAMILIES
from ttreg_hf.modeling.modeling_ttreg import patched_name

SUITCASE = Path(ttreg_hf.modeling.__file__).parent
TRAVELLING = sorted(path for path in SUITCASE.glob("*.py") if path.name != "__init__.py")
ALLOWED = {"torch", "transformers", "huggingface_hub", *sys.stdlib_module_names}
# what transformers looks for in the text of a file, docstrings included
IMPORT_LINE = re.compile(r"^\s*(?:import\s+\S+\s*$|from\s+\S+\s+import)", re.MULTILINE)
MOST_LINES = 600  # of code: docstrings, comments and blank lines are not counted

CHILD = """
import json, pathlib, sys
sys.modules["ttreg_hf"] = None  # as if it were not installed
import torch
import transformers
from transformers.dynamic_module_utils import get_class_from_dynamic_module

torch.set_num_threads(1)
report = {}


def tensors_of(output):
    if isinstance(output, torch.Tensor):
        return [output]
    parts = output.values() if isinstance(output, dict) else output or ()
    return [tensor for part in parts for tensor in tensors_of(part)]


for folder, name in json.loads(sys.argv[1]):
    auto = getattr(transformers, name) if name.startswith("AutoModel") else None
    refusal = None
    if auto is not None:
        try:
            auto.from_pretrained(folder)
        except ValueError as error:
            refusal = str(error)
        model = auto.from_pretrained(folder, trust_remote_code=True)
    else:  # AutoBackbone.from_pretrained of a local folder fails for stock models too
        reference = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True).auto_map[name]
        model = get_class_from_dynamic_module(reference, folder).from_pretrained(folder)
    with torch.no_grad():
        output = model(**torch.load(folder + "/inputs.pt"), output_hidden_states=True)
    torch.save(tensors_of(output), folder + "/outputs.pt")
    report[folder] = {"class": type(model).__name__, "module": type(model).__module__, "refusal": refusal}
    if auto is not None:
        with model.disable_test_time_registers():
            model(**torch.load(folder + "/inputs.pt"))
pathlib.Path("report.json").write_text(json.dumps(report))  # standard output holds transformers' question
"""


def _loader(case):
    """The first Auto class that loads a case; the stock class where none does."""
    return getattr(transformers, patched_class(modeling, case)._auto_class)


def _outputs(model):
    with torch.no_grad():
        output = model(**inputs(model, images()), output_hidden_states=True)
    return [tensor for _, tensor in flat_tensors(output) if tensor is not None]


@pytest.fixture(scope="module")
def strangers(tmp_path_factory):
    """Cases saved, and loaded by one other process that has no ttreg_hf; folders and its report."""
    root = tmp_path_factory.mktemp("strangers")
    folders = {}
    for case in LAW_CASES:
        folders[case.name] = folder = root / case.name
        model = patched_model(modeling, case, case.stock_model(attention="sdpa"), shift_fill="outliers")
        model.save_pretrained(folder)
        torch.save(inputs(model, images()), folder / "inputs.pt")
        torch.save(_outputs(model), folder / "expected.pt")
    jobs = json.dumps([[str(folders[case.name]), _loader(case).__name__] for case in LAW_CASES])
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HOME": str(root / "home"), "HF_HUB_OFFLINE": "1"}
    child = run_warm(CHILD, jobs, env=environment, cwd=root)
    assert child.returncode == 0, child.stderr
    return folders, json.loads((root / "report.json").read_text(encoding="utf-8"))


every_travelling_case = pytest.mark.parametrize("case", LAW_CASES, ids=lambda case: case.name)


@every_travelling_case
def test_a_stranger_gets_equal_outputs(case, strangers):
    folder = strangers[0][case.name]
    assert_equal_outputs(torch.load(folder / "outputs.pt"), torch.load(folder / "expected.pt"))


@every_travelling_case
def test_a_stranger_runs_the_code_that_travelled(case, strangers):
    folders, report = strangers
    entry = report[str(folders[case.name])]
    assert entry["class"] == patched_class(modeling, case).__name__
    assert entry["module"].startswith("transformers_modules.")


# AutoBackbone does not load local folders, and some heads have no Auto class
loaded_by_auto_model = pytest.mark.parametrize(
    "case", [case for case in LAW_CASES if _loader(case).__name__.startswith("AutoModel")], ids=lambda case: case.name
)


@loaded_by_auto_model
def test_a_stranger_without_the_flag_is_told_about_it(case, strangers):
    folders, report = strangers
    assert "trust_remote_code=True" in report[str(folders[case.name])]["refusal"]


@loaded_by_auto_model
def test_with_the_classes_registered_no_flag_is_needed(case, strangers):
    folder = strangers[0][case.name]
    model = _loader(case).from_pretrained(folder)
    assert type(model) is patched_class(modeling, case)
    assert_equal_outputs(_outputs(model), torch.load(folder / "expected.pt"))


@every_travelling_case
def test_saving_writes_the_three_files(case, strangers):
    files = sorted(strangers[0][case.name].glob("*.py"))
    assert [path.name for path in files] == ["families.py", "modeling_ttreg.py", "registers.py"]
    assert all(
        path.read_text(encoding="utf-8") == (SUITCASE / path.name).read_text(encoding="utf-8") for path in files
    )


def _lines_of_code(path: Path) -> int:
    """Lines that hold a token which is neither comment nor docstring."""
    source = path.read_text(encoding="utf-8")
    prose = {
        line
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for line in range(node.lineno, node.end_lineno + 1)
    }
    nothing = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in nothing:
            lines |= set(range(token.start[0], token.end[0] + 1))
    return len(lines - prose)


def test_the_files_are_short_enough_to_be_read_before_they_are_trusted():
    assert len(TRAVELLING) == 3
    assert sum(map(_lines_of_code, TRAVELLING)) <= MOST_LINES


@every_travelling_case
def test_the_saved_config_names_all_heads_whatever_head_was_saved(case, strangers):
    saved = json.loads((strangers[0][case.name] / "config.json").read_text(encoding="utf-8"))
    cls = patched_class(modeling, case)
    heads = stock_classes(case.config_class)
    names = {"AutoConfig": cls.config_class.__name__} | {auto: patched_name(stock) for auto, stock in heads.items()}
    names[cls._auto_class] = cls.__name__
    assert saved["auto_map"] == {auto: f"modeling_ttreg.{name}" for auto, name in names.items()}


@pytest.mark.parametrize("path", TRAVELLING, ids=lambda path: path.name)
def test_a_travelling_file_imports_little(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert {alias.name.split(".")[0] for alias in node.names} <= ALLOWED
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            assert node.module.split(".")[0] in ALLOWED
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 1
            assert node.module is not None
            assert (SUITCASE / f"{node.module}.py") in TRAVELLING


@pytest.mark.parametrize("path", TRAVELLING, ids=lambda path: path.name)
def test_imports_inside_functions_and_conditions_stand_in_try(path):
    """An import elsewhere than at the top or in a `try` body would become a requirement of the Hub repository."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    free = {id(node) for node in tree.body}
    free |= {id(inner) for node in ast.walk(tree) if isinstance(node, ast.Try) for inner in node.body}
    imports = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert [node.lineno for node in imports if id(node) not in free] == []


@pytest.mark.parametrize("path", TRAVELLING, ids=lambda path: path.name)
def test_no_line_of_a_string_looks_like_an_import(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert not IMPORT_LINE.search(node.value), node.lineno


def test_the_rules_of_imports_can_fail(tmp_path, monkeypatch):
    bad = tmp_path / "bad.py"
    checks = [
        (test_a_travelling_file_imports_little, "import numpy\n"),
        (test_a_travelling_file_imports_little, "from ttreg_hf import modeling\n"),
        (test_a_travelling_file_imports_little, "from . import families\n"),
        (test_a_travelling_file_imports_little, "from ..calibration import scores\n"),
        (test_imports_inside_functions_and_conditions_stand_in_try, "def f():\n    import torch\n"),
        (test_imports_inside_functions_and_conditions_stand_in_try, "if True:\n    import torch\n"),
        (test_no_line_of_a_string_looks_like_an_import, '"""Use:\n    import ttreg_hf\n"""\n'),
    ]
    for check, source in checks:
        bad.write_text(source, encoding="utf-8")
        with pytest.raises(AssertionError):
            check(bad)


def test_no_travelling_file_names_this_package_in_code():
    for path in TRAVELLING:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert not (isinstance(node, ast.Name) and node.id == "ttreg_hf")


def test_every_family_of_the_suitcase_is_in_the_matrix():
    tested = {case.stock_model().config.model_type for case in BARE_CASES}
    assert tested | {"idefics2_vision"} == set(FAMILIES)  # not exported: see the outer models
    for case in BARE_CASES:
        heads = {stock for stock in stock_classes(case.config_class).values() if "Masked" not in stock.__name__}
        assert heads <= {other.stock_class for other in (*CASES, PIXIO_BACKBONE)}


def test_the_code_says_with_which_releases_it_was_tried():
    """Of transformers: those that `nox -s transformers` tries."""
    noxfile = (Path(ttreg_hf.modeling.__file__).parents[2] / "noxfile.py").read_text(encoding="utf-8")
    releases = ast.literal_eval(re.search(r"^RELEASES = (\[.*?\])", noxfile, re.MULTILINE)[1])
    first, last = (release.rpartition(".")[0] for release in (releases[0], releases[-1]))
    source = (SUITCASE / "modeling_ttreg.py").read_text(encoding="utf-8")
    assert f"Tried with transformers {first} to {last}." in ast.get_docstring(ast.parse(source))
