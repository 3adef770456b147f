#!/usr/bin/env python
"""What must hold for `dist/` before it is published: `scripts/check_release.py dist`, in `nox -s release`.

Every fault is printed, and the exit code is 1. Needs `packaging`, and nothing of ttreg_hf.
"""

import re
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from email import message_from_bytes
from email.message import Message
from pathlib import Path

from packaging.version import Version

ROOT = Path(__file__).parents[1]
MOST_BYTES = {".whl": 2_000_000, ".gz": 5_000_000}
NEEDED = ("py.typed", "modeling/modeling_ttreg.py", "hub_configs/facebook--dinov2-large.json")
NOT_FOR_USERS = re.compile(r"(^|/)(tests?|benchmarks|scripts|__pycache__|\.[^/]+)(/|$)|\.(pyc|so|orig|rej)$")
LOCAL_PATH = re.compile(rb"/(?:home|Users|root|tmp)/\w+|[A-Z]:\\Users")


def faults(dist: Path, root: Path = ROOT) -> Iterator[str]:
    """Sentences, one a fault; none if all is well."""
    wheels, archives = sorted(dist.glob("*.whl")), sorted(dist.glob("*.tar.gz"))
    if [len(wheels), len(archives)] != [1, 1]:
        found = ", ".join(sorted(path.name for path in dist.iterdir())) if dist.is_dir() else "no such folder"
        yield f"{dist} must hold one wheel and one source archive, got: {found}. Build it again with `nox -s release`."
        return
    for path in (*wheels, *archives):
        if path.stat().st_size > MOST_BYTES[path.suffix]:
            yield f"{path.name} has {path.stat().st_size:,} bytes, at most {MOST_BYTES[path.suffix]:,} are allowed."
    with zipfile.ZipFile(wheels[0]) as wheel:
        files = {name: wheel.read(name) for name in wheel.namelist()}
    yield from _faults_of_files(files)
    metadata = next(message_from_bytes(text) for name, text in files.items() if name.endswith("info/METADATA"))
    yield from _faults_of_metadata(metadata, root)
    yield from _faults_of_archive(archives[0], metadata["Version"])


def _faults_of_files(files: dict[str, bytes]) -> Iterator[str]:
    for name, content in files.items():
        if not re.match(r"ttreg_hf(-[^/]+\.dist-info)?/", name) or NOT_FOR_USERS.search(name):
            yield f"The wheel must hold the package alone, got {name}."
        if local := LOCAL_PATH.search(content):
            yield f"No file may name a path of a machine: {name} of the wheel has {local.group().decode()}."
    for name in NEEDED:
        if f"ttreg_hf/{name}" not in files:
            yield f"The wheel must hold ttreg_hf/{name}."


def _faults_of_metadata(metadata: Message, root: Path) -> Iterator[str]:
    version = metadata["Version"]
    for name, line in (("CITATION.cff", f"version: {version}"), ("CHANGELOG.md", f"## [{version}] - 20")):
        if not re.search(f"^{re.escape(line)}", (root / name).read_text(encoding="utf-8"), re.MULTILINE):
            yield f"{name} must have a line that begins with `{line}`, as the wheel is {version}."
    if not Version(version).is_prerelease and not metadata.get_all("Project-URL"):
        yield f"{version} is no release candidate: fill in [project.urls] of pyproject.toml first."


def _faults_of_archive(path: Path, version: str) -> Iterator[str]:
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    if path.name != f"ttreg_hf-{version}.tar.gz":
        yield f"Source archive and wheel must be of one version, got {path.name} beside {version}."
    for name in ("README.md", "LICENSE", "SECURITY.md", "noxfile.py", "tests/conftest.py", "scripts/reproduce.py"):
        if name not in names:
            yield f"The source archive must hold {name}."


def main(arguments: list[str]) -> int:
    """Print the faults of a folder; 0 if there is none."""
    found = list(faults(Path(*arguments)))
    print("\n".join(found) or "The release is as it should be.")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
