"""A fresh Python interpreter, with the variables that it is given and no others."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path


def run_fresh(
    source: str, *arguments: object, env: Mapping[str, str], cwd: str | Path, timeout: float
) -> subprocess.CompletedProcess[str]:
    """What `python -c SOURCE ARGUMENTS` does there, with nothing to read.

    Args:
        source: Python code.
        arguments: its `sys.argv`, from the second on.
        env: all variables that it has.
        cwd: the folder that it starts in.
        timeout: seconds.

    Raises:
        subprocess.TimeoutExpired: it took longer, and was killed.
    """
    return subprocess.run(
        [sys.executable, "-c", source, *map(str, arguments)],
        check=False,
        env=env,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
