"""Fixtures of all tests, and the matrix of families as parameters."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from families import BARE_CASES, CASES, INHERITING_CASES, SOME_CASES, Case
from gallery import Gallery, make_gallery, make_spoilt
from local_hub import LocalHub, local_hub  # noqa: F401
from warm import run_warm

from ttreg_hf.publishing import output_check

torch.set_num_threads(1)  # tiny models: handing work to other threads costs more than it saves


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    if item.get_closest_marker("real") and "TTREG_REAL" not in os.environ:
        pytest.skip("needs a real checkpoint and photographs: TTREG_REAL names their folder, as in .ci/run")


@pytest.fixture(params=SOME_CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    """One family for each mechanism, and one of each kind of head."""
    return request.param


@pytest.fixture(params=INHERITING_CASES, ids=lambda case: case.name)
def inheriting_case(request: pytest.FixtureRequest) -> Case:
    """For what every class inherits from one place."""
    return request.param


@pytest.fixture(params=[case for case in SOME_CASES if case.is_bare], ids=lambda case: case.family.name)
def bare_case(request: pytest.FixtureRequest) -> Case:
    """One family for each mechanism, without a head."""
    return request.param


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def every_case(request: pytest.FixtureRequest) -> Case:
    """Every family with every head."""
    return request.param


@pytest.fixture(params=BARE_CASES, ids=lambda case: case.family.name)
def every_bare_case(request: pytest.FixtureRequest) -> Case:
    """Every family, without a head."""
    return request.param


@pytest.fixture
def hub(local_hub: LocalHub) -> Iterator[LocalHub]:  # noqa: F811
    """A stand-in whose clients must have asked for nothing unknown and met every fault that was prepared."""
    yield local_hub
    assert local_hub.unknown_requests == []
    assert local_hub.faults_to_come == []


@pytest.fixture
def forked_interpreters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints are verified in forks of a warm process: `test_checkpoint.py` shows that they work in cold ones."""
    monkeypatch.setattr(output_check, "run_fresh", run_warm)


@pytest.fixture(scope="session")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    return make_gallery(tmp_path_factory.mktemp("gallery"))


@pytest.fixture(scope="session")
def spoilt(gallery: Gallery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_spoilt(gallery, tmp_path_factory.mktemp("spoilt"))


@pytest.fixture(autouse=True)
def _same_random_numbers_in_every_test() -> None:
    if torch.cuda.is_available():
        torch.manual_seed(0)
    else:
        torch.default_generator.manual_seed(0)  # the same, without a stack trace kept for GPUs that might come
