"""Brings the fixtures, to the processes that run tests."""

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models; in child processes too


def pytest_configure(config: pytest.Config) -> None:
    hands_out = bool(config.getoption("numprocesses", None)) and not hasattr(config, "workerinput")
    if not hands_out:  # pytest-xdist's first process runs no test, and starts others sooner without PyTorch
        config.pluginmanager.import_plugin("common_fixtures")
