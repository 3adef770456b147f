"""One gallery of images for all tests, and launches of several processes."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest

from .brief import verify_briefly
from .gallery import Gallery, make_gallery, make_spoilt

TESTS = Path(__file__).parents[1]
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
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        paths = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
        child = subprocess.Popen(
            [*torchrun, "-m", "calibration.launched", str(path)],
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": paths},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            out, err = child.communicate(timeout=400)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            raise
        return subprocess.CompletedProcess(child.args, child.returncode, out, err)

    return run
