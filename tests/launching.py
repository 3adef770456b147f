"""Launches of several processes that work together."""

import os
import signal
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent


def torchrun(processes: int, module: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """What a module of the tests does in so many processes; none is left when the launch takes too long."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    child = subprocess.Popen(
        [*command, "-m", module, *map(str, arguments)],
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
