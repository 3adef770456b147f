"""Whether the tests pass, and checkpoints are exchanged, under several releases of transformers.

Run it through `scripts/test_versions.py`, in a checkout. Every release gets a virtual environment of its own,
installed by pip with torch as the tests pin it.
"""

import json
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ttreg_hf import probe
from ttreg_hf.benchmarks.exchange import STRANGER
from ttreg_hf.writing import write_file

CHECKOUT = Path(__file__).resolve().parents[2]
RELEASES = ("5.18.0", "5.21.1", "5.24.0")  # the floor, a middle one, the newest that was tried
_PACKAGES = ("transformers", "huggingface_hub", "torch", "accelerate", "datasets")
# another release may compute the same in another order
_MOST_DIFFERENCE = 1e-5


@dataclass(frozen=True)
class Tested:
    """One release.

    Args:
        packages: name -> version, as installed.
        passed, failed, skipped: counts of tests; errors count as failed.
        failures: names of the tests that failed.
        reasons: why tests were skipped -> how many.
    """

    packages: dict[str, str]
    passed: int
    failed: int
    skipped: int
    failures: list[str]
    reasons: dict[str, int]


@dataclass(frozen=True)
class Exchanged:
    """Checkpoints of every family, written under one release and read under another.

    Args:
        written, read: the releases.
        remote_code: read by the code in the checkpoint, without ttreg_hf.
        families: how many were compared.
        difference: the largest of all outputs, relative to the largest value of that output.
        error: why there is no difference.
    """

    written: str
    read: str
    remote_code: bool
    families: int = 0
    difference: float | None = None
    error: str = ""

    @property
    def is_equal(self) -> bool:
        return self.difference is not None and self.difference <= _MOST_DIFFERENCE


def make_environment(folder: Path, release: str) -> Path:
    """Install this checkout with its test tools and that release; the environment's interpreter.

    Raises:
        subprocess.CalledProcessError: pip did not succeed; it has said why.
    """
    python = folder / f"transformers-{release}" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        _run([sys.executable, "-m", "venv", str(python.parents[1])], check=True)
    install = ["-m", "pip", "install", "--quiet", "--editable", f"{CHECKOUT}[test]", f"transformers=={release}"]
    _run([str(python), *install], check=True)
    return python


def run_tests(python: Path, results: Path, arguments: list[str]) -> Tested:
    """Run pytest in an environment.

    Raises:
        RuntimeError: it wrote no results.
    """
    results.unlink(missing_ok=True)
    ended = _run([str(python), "-m", "pytest", "--quiet", f"--junitxml={results}", *arguments])
    if not results.exists():
        raise RuntimeError(f"pytest ended with code {ended.returncode} before it could write {results}. See above.")
    read_versions = (
        f"import importlib.metadata as m, json; print(json.dumps({{n: m.version(n) for n in {_PACKAGES}}}))"
    )
    packages = _run([str(python), "-c", read_versions], check=True, capture_output=True, text=True)
    return read_results(results, json.loads(packages.stdout))


def read_results(results: Path, packages: dict[str, str]) -> Tested:
    """Count the tests of a JUnit file."""
    failures, reasons, passed = [], Counter[str](), 0
    for test in ElementTree.parse(results).iter("testcase"):
        kinds = {child.tag: child for child in test}
        if kinds.keys() & {"failure", "error"}:
            failures.append(f"{test.get('classname')}::{test.get('name')}")
        elif "skipped" in kinds:
            reasons[kinds["skipped"].get("message", "")] += 1
        else:
            passed += 1
    return Tested(packages, passed, len(failures), reasons.total(), failures, dict(reasons))


def exchange(pythons: dict[str, Path], folder: Path) -> list[Exchanged]:
    """Let every release read what every release has written, with ttreg_hf and without."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    module = ["-m", "ttreg_hf.benchmarks.exchange"]
    found = []
    for written, writer in pythons.items():
        checkpoints, expected = folder / written, folder / f"{written}.json"
        _run([str(writer), *module, "write", str(checkpoints), str(expected)], check=True)
        for read, reader in pythons.items():
            for remote_code in (False, True):
                outputs = folder / f"{written}-{read}-{remote_code}.json"
                how = [*module, "read"] if not remote_code else ["-c", STRANGER, probe.__file__]
                ended = _run([str(reader), *how, str(checkpoints), str(outputs)], capture_output=True, text=True)
                if ended.returncode:
                    error = (ended.stderr.strip().splitlines() or ["no message"])[-1]
                    found.append(Exchanged(written, read, remote_code, error=error))
                else:
                    ours, theirs = (json.loads(path.read_text(encoding="utf-8")) for path in (expected, outputs))
                    difference = largest_difference(ours, theirs)
                    found.append(Exchanged(written, read, remote_code, len(ours), difference))
    return found


def largest_difference(expected: dict[str, Any], found: dict[str, Any]) -> float:
    """Of all outputs, relative to the largest value of that output in its family.

    Raises:
        ValueError: families or outputs are missing.
    """
    largest = 0.0
    for family, outputs in expected.items():
        if found.keys() != expected.keys() or found[family].keys() != outputs.keys():
            raise ValueError(f"Both sides must have the same families and outputs; they differ at {family}.")
        for name, rows in outputs.items():
            pairs = [
                pair
                for row, other in zip(rows, found[family][name], strict=True)
                for pair in zip(row, other, strict=True)
            ]
            scale = max(abs(ours) for ours, _ in pairs) or 1.0
            largest = max(largest, max(abs(ours - theirs) for ours, theirs in pairs) / scale)
    return largest


def tests_table(tested: dict[str, Tested]) -> str:
    """Passed, failed and skipped of each release, as Markdown."""
    rows = ["| transformers | huggingface_hub | passed | failed | skipped |", "|---|---|---|---|---|"]
    for release, one in tested.items():
        hub = one.packages["huggingface_hub"]
        rows.append(f"| {release} | {hub} | {one.passed} | {one.failed} | {one.skipped} |")
    return "\n".join(rows)


def exchange_table(exchanged: list[Exchanged]) -> str:
    """Who can read whom, as Markdown: with ttreg_hf / as remote code."""
    releases = list(dict.fromkeys(one.read for one in exchanged))
    cells: dict[tuple[str, str], list[str]] = {}
    for one in exchanged:
        cells.setdefault((one.written, one.read), []).append(_cell(one))
    rows = ["| written under | " + " | ".join(f"read under {release}" for release in releases) + " |"]
    rows.append("|---" * (len(releases) + 1) + "|")
    for written in dict.fromkeys(one.written for one in exchanged):
        rows.append(f"| {written} | " + " | ".join(" / ".join(cells[written, read]) for read in releases) + " |")
    return "\n".join(rows)


def _cell(one: Exchanged) -> str:
    if one.difference is None:
        return "error"
    return f"{'equal' if one.is_equal else 'different'} ({one.difference:.0e})"


def _run(command: list[str], **options: Any) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, cwd=CHECKOUT, env=environment, stdin=subprocess.DEVNULL, **options)


def compare_versions(
    folder: Annotated[Path, typer.Argument(help="Keeps environments, checkpoints and results; may be used again.")],
    release: Annotated[list[str] | None, typer.Option(help=f"Of transformers. Default: {RELEASES}.")] = None,
    tests: Annotated[list[str] | None, typer.Option(help="Argument of pytest; may be given again.")] = None,
) -> None:
    """Tests and exchanged checkpoints under several releases of transformers; exit code 1 if something fails."""
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    pythons = {name: make_environment(folder, name) for name in release or RELEASES}
    exchanged = exchange(pythons, folder / "checkpoints")
    tested = {
        name: run_tests(python, folder / f"tests-{name}.xml", list(tests or ())) for name, python in pythons.items()
    }
    report = {
        "tests": {name: asdict(one) for name, one in tested.items()},
        "exchanged": [asdict(one) for one in exchanged],
    }
    write_file(folder / "versions.json", json.dumps(report, indent=2).encode())
    print(tests_table(tested), exchange_table(exchanged), sep="\n\n")
    if any(one.failed for one in tested.values()) or not all(one.is_equal for one in exchanged):
        raise typer.Exit(1)


def main() -> None:
    """The command line of `scripts/test_versions.py`."""
    typer.run(compare_versions)
