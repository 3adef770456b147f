"""No progress bars of libraries."""

from collections.abc import Iterator

import datasets
import pytest


@pytest.fixture(scope="session", autouse=True)
def _no_progress_bars() -> Iterator[None]:
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()
