"""Launches of several processes."""

import json
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import datasets
import pytest
from gallery import Gallery
from launching import torchrun

Launch = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session", autouse=True)
def _no_progress_bars() -> Iterator[None]:
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture(scope="session")
def launch(gallery: Gallery, tmp_path_factory: pytest.TempPathFactory) -> Launch:
    """Runs tasks of `launched.py` in so many processes."""

    def run(processes: int, *tasks: dict[str, Any]) -> subprocess.CompletedProcess[str]:
        path = tmp_path_factory.mktemp("launch") / "tasks.json"
        gallery_is = {"root": gallery.root, "model": gallery.model, "norm_threshold": gallery.norm_threshold}
        path.write_text(json.dumps({**gallery_is, "tasks": tasks}, default=str))
        return torchrun(processes, "calibration.launched", path)

    return run
