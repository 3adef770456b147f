"""The Chromium that is installed, driven through playwright (extra `demo-test`)."""

import shutil
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HEADLESS = ("--no-sandbox", "--disable-gpu")  # as containers need it


@contextmanager
def chromium() -> Generator[Any]:
    """A headless browser.

    Raises:
        FileNotFoundError: none is installed.
    """
    from playwright.sync_api import sync_playwright

    if CHROMIUM is None:
        raise FileNotFoundError("Chromium opens the page, but none is on the path. Install one (Debian: chromium).")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(HEADLESS))
        yield browser
        browser.close()
