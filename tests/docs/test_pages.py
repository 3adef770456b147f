"""README and manual: links lead somewhere, commands are valid, messages are real, and the site builds."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import ttreg_hf
from docs.pages import MANUAL, NAMES, PAGES, README, ROOT, anchors, blocks, links
from ttreg_hf.cli.app import app

OTHERS = [ROOT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")]


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for link in links(page):
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), f"{page.name} links to {link}"
        assert not anchor or anchor in anchors(target), f"{page.name} links to {link}"


def test_every_page_is_in_the_menu_and_in_the_readme() -> None:
    (index,) = [page for page in MANUAL if page.name == "index.md"]
    pages = {page.name for page in MANUAL if page != index}
    assert pages == {link for link in links(index) if link.endswith(".md")}
    of_readme = {link.partition("#")[0] for link in links(README)}
    assert pages == {link.removeprefix("docs/") for link in of_readme if re.fullmatch(r"docs/[\w-]+\.md", link)}


def test_the_readme_is_one_page() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 130


def _commands() -> list[list[str]]:
    """The words of every `ttreg` command in the bash blocks, from the verb on."""
    found = []
    for page in PAGES:
        for block in blocks(page, "bash"):
            for line in block.text.replace("\\\n", " ").splitlines():
                for part in line.split("&&"):
                    words = shlex.split(part, comments=True)
                    name = next((word for word in words if word.rsplit("/", 1)[-1] in ("ttreg", "ttreg_hf")), None)
                    if name is not None and "pip" not in words:
                        found.append(words[words.index(name) + 1 :])
    return found


@pytest.mark.parametrize("words", _commands(), ids=" ".join)
def test_commands_are_valid(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("dinov2-base-ttreg", "found"):  # what earlier commands leave
        Path(folder).mkdir()
    verb, *arguments = words
    group = typer.main.get_command(app)
    command = group.get_command(typer.Context(group), verb)  # pyrefly: ignore[missing-attribute]
    assert command is not None, f"there is no verb {verb}"
    assert command.make_context(verb, arguments).params


def test_scripts_that_are_named_are_there() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in [*PAGES, *OTHERS])
    named = set(re.findall(r"\bscripts/[\w/]+\.py", text))
    assert len(named) > 5
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def _source() -> str:
    """All code of the package, strings that are broken over lines in one piece."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "ttreg_hf").rglob("*.py")))
    return re.sub(r"\"\n\s*f?\"", "", text)


def test_messages_under_troubleshooting_are_real() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    about_messages, _, _ = page.partition("## Numbers that look odd")
    quoted = re.findall(r"^- `([^`]{10,})`: ", about_messages, re.MULTILINE)
    assert len(quoted) >= 15
    source = _source()
    assert [message for message in quoted if message not in source] == []


def test_every_exported_name_is_in_the_reference() -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    names = [name for name in ttreg_hf.__all__ if "TTReg" not in name and not name.startswith("__")]
    assert len(names) > 15
    assert [name for name in names if f" ttreg_hf.{name}\n" not in page] == []


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("sphinx", reason="the extra `docs` is not installed")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "docs", str(tmp_path)]
    child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert child.returncode == 0, child.stderr
    built = {page.name for page in tmp_path.glob("*.html")}
    assert {f"{Path(name).stem}.html" for name in NAMES if name.startswith("docs/")} <= built
