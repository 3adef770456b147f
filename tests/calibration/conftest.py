"""One gallery of images for all tests, and launches of several processes."""

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from launching import torchrun

from .brief import verify_briefly
from .gallery import Gallery, make_gallery, make_spoilt

Launch = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session", autouse=True)
def _no_progress_bars() -> Iterator[None]:
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture(scope="module")
def brief_verification() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        verify_briefly(patch)
        yield


@pytest.fixture(scope="session")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    return make_gallery(tmp_path_factory.mktemp("gallery"))


@pytest.fixture(scope="session")
def spoilt(gallery: Gallery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_spoilt(gallery, tmp_path_factory.mktemp("spoilt"))


@pytest.fixture(scope="session")
def launch(gallery: Gallery, tmp_path_factory: pytest.TempPathFactory) -> Launch:
    """Runs tasks of `launched.py` in so many processes."""

    def run(processes: int, *tasks: dict[str, Any]) -> subprocess.CompletedProcess[str]:
        path = tmp_path_factory.mktemp("launch") / "tasks.json"
        gallery_is = {"root": gallery.root, "model": gallery.model, "norm_threshold": gallery.norm_threshold}
        path.write_text(json.dumps({**gallery_is, "tasks": tasks}, default=str))
        return torchrun(processes, "calibration.launched", path)

    return run
