"""A live demonstration in a child process: the Space that `ttreg demo --live --space` publishes, run as there."""

import contextlib
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

from local_hub import LocalHub
from publishing.publisher import run

_SECONDS_TO_START = 180
PUBLISH = """
from ttreg_hf.known import install_spec

install_spec.INSTALL_SPEC = "ttreg_hf @ git+https://example.org/ttreg_hf@abc"
push_checkpoint("checkpoint", "org/vit")
live = ("demo", "org/vit", "--live", "--space", "org/live")
report["dry"] = ttreg(*live, "--dry-run")
report["live"] = ttreg(*live, "--private")
report["again"] = ttreg(*live)
"""


@dataclass(frozen=True)
class LiveServer:
    """A running server.

    Args:
        address: with a slash at the end.
        process: the child.
        folder: with its `home`, `temporary` and `space`, which is its working directory.
        told: what the commands printed that published it.
        space: files of the Space.
    """

    address: str
    process: subprocess.Popen[str]
    folder: Path
    told: dict[str, dict]
    space: dict[str, bytes]

    def files(self, name: str) -> set[str]:
        """Files below one of its folders."""
        return {str(path.relative_to(self.folder)) for path in (self.folder / name).rglob("*") if path.is_file()}

    def stop(self) -> int:
        """As `kill` does; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)


@contextlib.contextmanager
def published_and_running(home: Path, folder: Path) -> Generator[LiveServer]:
    """Publish on a stand-in for the Hub, take what is there, and run it.

    Args:
        home: working directory with `checkpoint`.
        folder: for the server.
    """
    with LocalHub() as hub:
        told = run(hub, PUBLISH, home, token=hub.token)
        space = hub.files("org/live", repo_type="space")
        for name in ("home", "temporary", "space"):
            (folder / name).mkdir(parents=True)
        (folder / "space" / "app.py").write_bytes(space["app.py"])
        process = subprocess.Popen(
            [sys.executable, "app.py"],
            cwd=folder / "space",
            env={
                **hub.environment(folder / "hub", token=hub.token),
                **{"HOME": str(folder / "home"), "TMPDIR": str(folder / "temporary"), "PYTHONUNBUFFERED": "1"},
                **{"PYTHONDONTWRITEBYTECODE": "1", "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")},
                "MPLCONFIGDIR": str(folder / "matplotlib"),
            },
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        try:
            yield LiveServer(_address(process), process, folder, told, space)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def _address(process: subprocess.Popen[str]) -> str:
    """As it prints it; its further output is read and dropped, so that it never waits for a reader."""
    found: queue.Queue[str] = queue.Queue()

    def read() -> None:
        lines = []
        with contextlib.suppress(ValueError):  # closed
            for line in process.stdout:
                lines.append(line)
                if line.startswith("live at "):
                    found.put(line.split()[2])
        found.put("ended: " + "".join(lines))

    threading.Thread(target=read, daemon=True).start()
    address = found.get(timeout=_SECONDS_TO_START)
    assert address.startswith("http"), address
    return address
