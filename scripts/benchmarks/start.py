"""What the answers of the command line cost that need no model: CPU seconds and memory, each in a fresh process.

Run it through `scripts/benchmark_start.py`, on Linux. Modules are compiled once before, as an installed package's are.
"""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

_USED = """
import time
used = open("/proc/self/status").read().split("VmHWM:")[1].split()[0]  # getrusage's begins with the parent's
sys.stderr.write("\\n%r %r" % (time.process_time(), int(used) / 1024))
"""
_COMMANDS = {
    "import ttreg_hf": None,
    "ttreg": [],
    "ttreg --help": ["--help"],
    "ttreg --version": ["--version"],
    "ttreg list": ["list"],
    "ttreg inspect --help": ["inspect", "--help"],
    "ttreg calibrate --help": ["calibrate", "--help"],
    "ttreg evaluate --help": ["evaluate", "--help"],
    "ttreg nosuch": ["nosuch"],
    "ttreg inspect (no MODEL)": ["inspect"],
    "ttreg inspect m --top 3": ["inspect", "m", "--top", "3"],
}


def benchmark(
    rounds: Annotated[int, typer.Option(min=1, help="Measured ones, after one that compiles.")] = 9,
    output: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Measure and print a table: median and highest of CPU seconds, and the most memory of a process, in MiB."""
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in _COMMANDS}
    with TemporaryDirectory() as compiled:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        environment["PYTHONPYCACHEPREFIX"] = compiled
        for count in range(rounds + 1):
            for name, arguments in _COMMANDS.items():
                measured = _measure(arguments, environment)
                if count:  # the first round compiles
                    results[name].append(measured)
    table = {
        name: {
            "cpu_seconds": statistics.median(seconds for seconds, _ in measured),
            "highest_cpu_seconds": max(seconds for seconds, _ in measured),
            "mebibytes": max(memory for _, memory in measured),
        }
        for name, measured in results.items()
    }
    print(f"{rounds} interleaved rounds, {os.cpu_count()} cores, Python {sys.version.split()[0]}")
    for name, row in table.items():
        print(
            f"{name:<28}{row['cpu_seconds']:6.2f} s (at most {row['highest_cpu_seconds']:.2f} s)"
            f"{row['mebibytes']:7.0f} MiB"
        )
    if output is not None:
        output.write_text(json.dumps({"rounds": rounds, "results": table}, indent=2) + "\n", encoding="utf-8")


def _measure(arguments: list[str] | None, environment: dict[str, str]) -> tuple[float, float]:
    """CPU seconds from the interpreter's start, and MiB, of one process."""
    run = "import ttreg_hf" if arguments is None else "from ttreg_hf.cli import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", f"import sys\n{run}\n{_USED}", *(arguments or [])]
    child = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    seconds, memory = child.stderr.splitlines()[-1].split()
    return float(seconds), float(memory)


def main() -> None:
    """As a script."""
    typer.run(benchmark)
