"""Mutants of the suitcase's source, each wrong in one way, break a law: the laws can fail."""

import importlib
import importlib.util
import itertools
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from families import CASES

import ttreg_hf.modeling
from modeling import laws

SUITCASE = Path(ttreg_hf.modeling.__file__).parent
METHOD, BASE = "registers.py", "modeling_ttreg.py"
SHIFTED = "torch.cat([prefix, *[moved] * layout.num_test_time_registers, left], dim=1)"
WRITTEN = "return write(-1, neurons.index_K, shifted_BTK)"
MAXIMUM = "signed_max(acts_BTK, seen_BT, without=layout.registers)"
INSERTED = "return torch.cat([prefix, registers, patches], dim)"
# a plain MLP with a pre-LayerNorm, a gated MLP, a head, and the one head that reads captured outputs
JUDGES = [case for case in CASES if case.name in ("clip-CLIPVisionModel", "dinov2-swiglu-Dinov2Model")] + [
    case for case in CASES if case.name in ("dinov2-Dinov2ForImageClassification", "dinov2-Dinov2Backbone")
]
NO_SHIFT = (METHOD, WRITTEN, "return acts_BTF")

MUTANTS = [
    (
        "no insertion",
        METHOD,
        "return self._put(empty, tokens_BTD, dim=1)",
        "return tokens_BTD",
    ),
    (
        "registers last",
        METHOD,
        INSERTED,
        "return torch.cat([tensor, registers], dim)",
    ),
    (
        "zero without moving",
        METHOD,
        SHIFTED,
        SHIFTED.replace("*[moved] * layout.num_test_time_registers", "acts_BTK[:, layout.registers]"),
    ),
    (
        "move without zeroing",
        METHOD,
        SHIFTED,
        SHIFTED.replace("left", "patches"),
    ),
    (
        "image 0 only",
        METHOD,
        SHIFTED,
        f"torch.cat([{SHIFTED}[:1], acts_BTK[1:]])",
    ),
    (
        "image 0's value for all",
        METHOD,
        'moved if settings["shift_scale"] == 1 else moved * settings["shift_scale"]',
        "moved[:1].expand_as(moved)",
    ),
    (
        "register inside its own maximum",
        METHOD,
        MAXIMUM,
        "signed_max(acts_BTK, seen_BT)",
    ),
    (
        "prefix outside the maximum",
        METHOD,
        "magnitudes_BTK[:, without].fill_(-1)",
        "magnitudes_BTK[:, : without.stop].fill_(-1)",
    ),
    (
        "sign lost",
        METHOD,
        "return acts_BTK.gather(",
        "return acts_BTK.abs().gather(",
    ),
    (
        "prefix zeroed too",
        METHOD,
        SHIFTED,
        SHIFTED.replace("prefix", "torch.zeros_like(prefix)"),
    ),
    (
        "layer off by one",
        BASE,
        "place_shift(block, listed.get(layer, []), self.registers)",
        "place_shift(block, listed.get(layer + 1, []), self.registers)",
    ),
    (
        "no removal after the last block",
        BASE,
        "register_forward_hook(registers.on_last_block, prepend=True)",
        "register_forward_hook(lambda module, args, output: None)",
    ),
    (
        "removal after the last block's output is captured",
        BASE,
        "register_forward_hook(registers.on_last_block, prepend=True)",
        "register_forward_hook(registers.on_last_block)",
    ),
    (
        "no removal from captured outputs",
        BASE,
        "register_forward_hook(registers.on_captured)",
        "register_forward_hook(lambda module, args, output: None)",
    ),
    (
        "attention columns of the registers stay",
        METHOD,
        "return self.remove(self.remove(attention_BHTT, dim=2), dim=3)",
        "return self.remove(attention_BHTT, dim=2)",
    ),
    (
        "padding inside the maximum",
        METHOD,
        MAXIMUM,
        "signed_max(acts_BTK, None, without=layout.registers)",
    ),
    (
        "the switch does nothing",
        BASE,
        "before, here.enabled = here.enabled, False",
        "before, here.enabled = here.enabled, True",
    ),
]


def _load_copy(folder: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    importlib.import_module(f"{name}.modeling_ttreg")
    return module


@pytest.fixture
def suitcase_copy(tmp_path: Path) -> Iterator[Path]:
    """A copy of the folder to change and load; what was loaded from it is forgotten after the test."""
    folder = tmp_path / "suitcase"
    shutil.copytree(SUITCASE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    yield folder
    for name in [name for name in sys.modules if name.split(".")[0] == "mutant"]:
        del sys.modules[name]


def _first_broken_law(modeling: ModuleType) -> str | None:
    for case, law in itertools.product(JUDGES, laws.LAWS):
        try:
            law(modeling, case)
        except (AssertionError, RuntimeError, ValueError, IndexError) as error:
            return f"{case.name}: {law.__name__}: {error}"
    return None


@pytest.fixture(scope="module")
def modeling_without_shift(tmp_path_factory) -> ModuleType:
    folder = tmp_path_factory.mktemp("mutant") / "suitcase"
    shutil.copytree(SUITCASE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    file, old, new = NO_SHIFT
    source = (folder / file).read_text(encoding="utf-8")
    assert source.count(old) == 1
    (folder / file).write_text(source.replace(old, new), encoding="utf-8")
    return _load_copy(folder, "mutant_without_shift")


def test_without_the_shift_every_family_and_head_breaks_the_laws(modeling_without_shift, every_case):
    for law in (
        laws.law_down_projections_read_shifted_activations,
        laws.law_outputs_are_those_of_the_method_by_hand,
    ):
        with pytest.raises(AssertionError):
            law(modeling_without_shift, every_case)


def test_an_unchanged_copy_breaks_no_law(suitcase_copy):
    assert _first_broken_law(_load_copy(suitcase_copy, "mutant")) is None


@pytest.mark.parametrize(
    ("file", "old", "new"), [mutant[1:] for mutant in MUTANTS], ids=[mutant[0] for mutant in MUTANTS]
)
def test_a_mutant_breaks_a_law(suitcase_copy, file, old, new):
    source = (suitcase_copy / file).read_text(encoding="utf-8")
    assert source.count(old) == 1
    (suitcase_copy / file).write_text(source.replace(old, new), encoding="utf-8")
    assert _first_broken_law(_load_copy(suitcase_copy, "mutant")) is not None
