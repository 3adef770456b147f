"""Pages in a headless browser."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium is installed here (Debian: the package chromium)"
)


def browse(page: Path, *arguments: str, fragment: str = "") -> str:
    child = subprocess.run(
        [
            str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            f"--user-data-dir={page.parent / 'profile'}", "--virtual-time-budget=2000", *arguments,
            f"file://{page}{fragment}",
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return child.stdout


def add_script(page: Path, script: str) -> None:
    """Runs after the page's own."""
    text = page.read_text(encoding="utf-8")
    assert text.count("</body>") == 1
    page.write_text(text.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")


def shown(dom: str) -> dict[str, str]:
    """Texts of the page by the id of their element."""
    return dict(re.findall(r'<(?:dd|p|output) id="(\w+)"[^>]*>([^<]*)<', dom))
