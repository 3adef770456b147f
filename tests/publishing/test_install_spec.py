"""Nobody is told to install a package by a name that is not ours on the package index."""

import re
from pathlib import Path

import pytest

from ttreg_hf import Dinov2TTRegConfig
from ttreg_hf.known import install_spec
from ttreg_hf.publishing.card import model_card

ROOT = Path(__file__).parents[2]
BARE = re.compile(
    r"""\b(?:pip3?|uv|pipx|poetry|conda)\b[^\n`]*\b(?:install|add|tool)\b[^\n`]*\bttreg[-_]hf\b(?!\S* *@)"""
)
SUFFIXES = {".py", ".md", ".toml", ".json", ".html", ".yaml", ".yml", ".cff", ".pyi", ".txt"}
IGNORED = {"tests", "venv", ".venv", "node_modules", "build", "dist"}


def texts() -> list[Path]:
    return [
        path
        for path in ROOT.rglob("*")
        if path.suffix in SUFFIXES
        and not any(part in IGNORED or part.startswith(".") for part in path.relative_to(ROOT).parts)
    ]


@pytest.mark.parametrize(
    ("text", "is_bare"),
    [
        ("pip install ttreg_hf", True),
        ("pip install -U 'ttreg-hf[evaluate]'", True),
        ("python -m pip install torch ttreg_hf", True),
        ("uv add ttreg_hf", True),
        ('pip install "ttreg_hf @ git+https://example.org/ttreg_hf@abc"', False),
        ("pip install .", False),
        ("pip install scikit-learn, then import ttreg_hf", True),
    ],
)
def test_bare_names_are_seen(text, is_bare):
    assert bool(BARE.search(text)) is is_bare


def test_no_text_names_the_bare_package():
    assert len(texts()) > 100
    found = {str(path.relative_to(ROOT)): BARE.findall(path.read_text(encoding="utf-8")) for path in texts()}
    assert {name: lines for name, lines in found.items() if lines} == {}


@pytest.mark.parametrize("config_only", [False, True])
@pytest.mark.parametrize("architecture", ["Dinov2TTRegModel", "CLIPVisionTTRegModelWithProjection"])
@pytest.mark.parametrize("spec", [None, "ttreg_hf @ git+https://example.org/ttreg_hf@abc"])
def test_cards_name_the_pinned_source_or_none(monkeypatch, spec, architecture, config_only):
    monkeypatch.setattr(install_spec, "INSTALL_SPEC", spec)
    config = Dinov2TTRegConfig(register_neurons=[[1, 2]], architectures=[architecture])
    text = model_card(config, config_only=config_only).text
    assert not BARE.search(text)
    is_imported = config_only or architecture != "Dinov2TTRegModel"
    assert (f'# pip install "{spec}"' in text) is (spec is not None and is_imported)
    assert ("pip install" in text) is (spec is not None and is_imported)
