"""Python source in processes of their own that need not import PyTorch first: forks of one that has.

Started by its path it is that process: it has imported what is slow and reads no variable of the environment, so
neither transformers nor huggingface_hub, and forks once for each line of standard input.
"""

import atexit
import functools
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SLOW = ("torch", "torch._dynamo", "numpy", "pandas", "pyarrow", "scipy.optimize", "PIL.Image", "sympy")


def run_warm(
    source: str, *arguments: object, env: Mapping[str, str], cwd: str | os.PathLike[str], timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """What `python -c SOURCE ARGUMENTS` does, as `subprocess.run` returns it; killed when it takes too long."""
    command = ["-c", source, *map(str, arguments)]
    with tempfile.TemporaryDirectory(prefix="warm-") as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        job = {"argv": command, "env": dict(env), "cwd": os.fspath(cwd), "out": str(out), "err": str(err)}
        warm = _warm_process()
        warm.stdin.write(json.dumps(job) + "\n")
        warm.stdin.flush()
        child = int(warm.stdout.readline())
        killer = threading.Timer(timeout, os.kill, (child, 9))
        killer.start()
        code = int(warm.stdout.readline())
        killer.cancel()
        return subprocess.CompletedProcess(command, code, out.read_text(), err.read_text())


@functools.cache
def _warm_process() -> Any:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    process = subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment | {"OMP_NUM_THREADS": "1"},
    )
    atexit.register(_end, process)
    return process


def _end(process: Any) -> None:
    process.stdin.close()
    process.wait()
    process.stdout.close()


def _serve() -> None:
    import importlib

    for name in SLOW:
        importlib.import_module(name)
    sys.path.pop(0)  # this file's folder
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _become(json.loads(line))
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _become(job: dict[str, Any]) -> None:
    """This process is the job from now on."""
    import traceback
    import types

    for number, path, flags in ((0, os.devnull, os.O_RDONLY), (1, job["out"], None), (2, job["err"], None)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT if flags is None else flags), number)
    os.environ.clear()
    os.environ.update(job["env"])
    os.chdir(job["cwd"])
    sys.path[:0] = ["", *filter(None, job["env"].get("PYTHONPATH", "").split(os.pathsep))]
    _, source, *arguments = job["argv"]
    sys.argv = ["-c", *arguments]
    sys.modules["__main__"] = types.ModuleType("__main__")
    code = 0
    try:
        exec(compile(source, "<string>", "exec"), vars(sys.modules["__main__"]))
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _serve()
