"""README and manual, as data: code blocks, headings, links."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
MANUAL = sorted((ROOT / "docs").glob("*.md"))
PAGES = [README, *MANUAL]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
_FENCE = re.compile(r"^```(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_NOT_RUN = re.compile(r"<!-- not run: (.+) -->\n$")
_LINK = re.compile(r"\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Args:
        page: from the root.
        line: of the page, from 1, where its text begins.
        language: `python`, `bash`, or others.
        text: without the fences.
        reason: why it is not run, from the comment before it; `None` where it is.
    """

    page: str
    line: int
    language: str
    text: str
    reason: str | None


def blocks(page: Path, language: str) -> list[Block]:
    """The page's blocks in a language, in order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(text):
        skipped = _NOT_RUN.search(text[: match.start()])
        line = text[: match.start()].count("\n") + 2
        reason = skipped[1] if skipped else None
        found.append(Block(str(page.relative_to(ROOT)), line, match[1], match[2], reason))
    return [block for block in found if block.language == language]


def links(page: Path) -> list[str]:
    """Targets of links and pictures that are no addresses of the web."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    return [target for target in _LINK.findall(text) if not target.startswith(("http://", "https://"))]


def anchors(page: Path) -> set[str]:
    """Of the headings, as GitHub and MyST make them."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#{1,6} (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
