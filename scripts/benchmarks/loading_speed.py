"""What `import ttreg_hf` adds to an import of transformers, and loading a patched model to loading its base model.

Run it through `scripts/benchmark_loading.py`, on Linux. Every measurement is a process of its own; they take turns.
"""

import json
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import typer

from benchmarks.baselines import BASE, PATCHED, neurons_of
from benchmarks.models import random_model
from benchmarks.options import Rounds, Sizes
from ttreg_hf.applying import add_test_time_registers
from ttreg_hf.measuring.interleaved import machine

_CHILD = """
import time
def peak():  # of this process alone: what `getrusage` tells begins with its parent's
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) / 1024
{before}
held = peak()
start, computed = time.perf_counter(), time.process_time()
{measured}
print(time.perf_counter() - start, time.process_time() - computed)
print(peak() - held)
"""
_STOCK, _BOTH, _ADDED = "transformers", "transformers and ttreg_hf", "ttreg_hf after that"


def benchmark(
    size: Sizes = ["dinov2-small", "dinov2-large"],  # noqa: B006
    rounds: Rounds = 9,
    output: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Measure and print a table.

    Medians of seconds, of seconds on the CPU (which other work on the machine prolongs less), and of how much the
    most memory of a process grows.
    """
    stock = "from transformers import Dinov2Model"
    steps = {_STOCK: ("", stock), _BOTH: ("", f"{stock}\nimport ttreg_hf"), _ADDED: (stock, "import ttreg_hf")}
    results = {"import": _measure(steps, rounds)}
    for name in size:
        with TemporaryDirectory() as folder:
            results[f"load {name}"] = _measure(_loads(name, Path(folder)), rounds)
    report = {"machine": machine(torch.device("cpu")), "rounds": rounds, "results": results}
    print(f"{report['machine']}; medians of {rounds} interleaved rounds")
    for what, rows in results.items():
        first = next(iter(rows.values()))
        for name, row in rows.items():
            columns = (f"{value:9.3f} {unit}{_times(value, first[unit])}" for unit, value in row.items())
            print(f"{what:<20}{name:<28}{''.join(columns)}")
    if output is not None:
        output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _times(value: float, first: float) -> str:
    """Nothing beside 0: a process that needs no more memory than it held before."""
    return f" ({value / first:.3f} x)" if first else ""


def _loads(size: str, folder: Path) -> dict[str, tuple[str, str]]:
    """Save a random model of this size, and its patched one, and say how each is loaded."""
    base = random_model(size, image_size=224, device=torch.device("cpu"), dtype=torch.float32)
    models: dict[str, Any] = {BASE: base, PATCHED: add_test_time_registers(base, neurons_of(size, base))}
    steps = {}
    for name, model in models.items():
        model.save_pretrained(folder / name)
        before = f"import ttreg_hf\nfrom transformers import AutoModel, {type(base).__name__}"
        steps[name] = (before, f"AutoModel.from_pretrained({str(folder / name)!r})")
    return steps


def _measure(steps: Mapping[str, tuple[str, str]], rounds: int) -> dict[str, dict[str, float]]:
    """Each step in a process of its own, in turn; the first round, which fills the disk's cache, does not count."""
    found: dict[str, list[list[float]]] = {name: [] for name in steps}
    for _ in range(rounds + 1):
        for name, (before, measured) in steps.items():
            code = _CHILD.format(before=before, measured=measured)
            out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
            found[name].append([float(value) for value in out.split()])
    medians = {name: map(statistics.median, zip(*values[1:], strict=True)) for name, values in found.items()}
    return {name: dict(zip(("s", "CPU s", "MB"), each, strict=True)) for name, each in medians.items()}


def main() -> None:
    """The command line of `scripts/benchmark_loading.py`."""
    typer.run(benchmark)
