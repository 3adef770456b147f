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
from modeling import constant_laws, laws

SUITCASE = Path(ttreg_hf.modeling.__file__).parent
METHOD, BASE, FAMILIES = "registers.py", "modeling_ttreg.py", "families.py"
SHIFTED = 'torch.cat([prefix, moved, SHIFT_FILLS[settings["shift_fill"]](patches, seen_BN)], dim=1)'
WRITTEN = "return acts_BTF.index_copy_(-1, index_K, shifted_BTK)"
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
        "return self._put(start_D.expand(tokens_BTD.shape[0], self.num_test_time_registers, -1), tokens_BTD, dim=1)",
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
        SHIFTED.replace("moved", "acts_BTK[:, layout.registers]"),
    ),
    (
        "move without zeroing",
        METHOD,
        SHIFTED,
        SHIFTED.replace('SHIFT_FILLS[settings["shift_fill"]](patches, seen_BN)', "patches"),
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
        "value_BK.unsqueeze(1).expand_as(moved)",
        "value_BK[:1].unsqueeze(1).expand_as(moved)",
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
        FAMILIES,
        "place_shift(block, neurons_by_layer.get(layer, []), registers)",
        "place_shift(block, neurons_by_layer.get(layer + 1, []), registers)",
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
        "no shift is told of padding",
        METHOD,
        "self.forward_pass.mask = mask",
        "pass",
    ),
    (
        "the switch does nothing",
        BASE,
        "before, here.enabled = here.enabled, False",
        "before, here.enabled = here.enabled, True",
    ),
    (
        "the constant row is read in every layer",
        METHOD,
        "if row < 0 or self.inserts",
        "if self.inserts",
    ),
    (
        "the next layer's constant row",
        METHOD,
        "self.constants[row])",
        "self.constants[row - 1])",
    ),
    (
        "the constant row stays in the attention's output",
        METHOD,
        "return tokens_BTD[:, 1:], None if weights_BHTT is None else weights_BHTT[:, :, 1:, 1:], *others",
        "return tokens_BTD[:, :-1], None if weights_BHTT is None else weights_BHTT[:, :, 1:, 1:], *others",
    ),
    (
        "its attention column stays",
        METHOD,
        "weights_BHTT[:, :, 1:, 1:]",
        "weights_BHTT[:, :, 1:, :-1]",
    ),
    (
        "neurons stay on the patches in constant mode",
        METHOD,
        "if not registers.active:",
        "if not registers.inserts:",
    ),
    (
        "spikes stay",
        METHOD,
        "-= added_DN.T.to(tokens_BTD)",
        "-= 0 * added_DN.T.to(tokens_BTD)",
    ),
    (
        "the whole row is replaced",
        METHOD,
        "excess_1Dhw.abs() > _OUTSTANDING * typical_11hw",
        "excess_1Dhw.abs() > -1",
    ),
    (
        "a spike counts as an ordinary row",
        METHOD,
        "ordinary_11hw[..., rows, columns] = 0",
        "ordinary_11hw[..., rows[1:], columns[1:]] = 0",
    ),
    (
        "the register starts with another spike",
        METHOD,
        "spikes_1Dhw.norm(dim=1).argmax()",
        "spikes_1Dhw.norm(dim=1).argmin()",
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
    for case, law in itertools.product(JUDGES, [*laws.LAWS, *constant_laws.LAWS]):
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
