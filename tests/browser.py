"""Pages in a headless browser. Run as a program it says why there were no such tests; nothing, if there were."""

import importlib.util
import re
import subprocess
from pathlib import Path

import pytest
from benchmarks.chromium import CHROMIUM, HEADLESS

_WITHOUT_BROWSER = "no Chromium is installed here (Debian: the package chromium)"
_WITHOUT_GRADIO = 'gradio or playwright is not installed here (pip install ".[demo-test]")'
_HAS_GRADIO = all(map(importlib.util.find_spec, ("gradio", "playwright")))
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason=_WITHOUT_BROWSER)
needs_gradio = pytest.mark.skipif(not _HAS_GRADIO, reason=_WITHOUT_GRADIO)


def browse(page: Path, *arguments: str, fragment: str = "") -> str:
    child = subprocess.run(
        [
            str(CHROMIUM), "--headless", *HEADLESS, "--hide-scrollbars",
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


if __name__ == "__main__":
    for is_there, reason in ((CHROMIUM is not None, _WITHOUT_BROWSER), (_HAS_GRADIO, _WITHOUT_GRADIO)):
        if not is_there:
            print(f"tests in a browser were skipped: {reason}")
