"""Photographs that Debian ships: 80 independent ones from six packages, split by package.

Run it through `scripts/real_photographs.py`. The list is data, `photographs.json`: package, version, SHA-256, licence,
split, files. `apt-get download` fetches into a folder of its own; nothing is installed.
"""

import hashlib
import io
import json
import os
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image

from ttreg_hf.records import from_json
from ttreg_hf.writing import check_output, whole_directory

GROW, CALIBRATE, REPORT = SPLITS = ("grow", "calibrate", "report")
LICENCES_FILE = "LICENCES.md"
_SHORT_SIDE, _QUALITY = 560, 92  # pixels: enough for 518; JPEG
_SOURCES = "deb [trusted=yes] http://deb.debian.org/debian bookworm main\n"  # trusted: each package's SHA-256 is known
_SECONDS = 240  # for one command of apt


@dataclass(frozen=True)
class Package:
    """A Debian package that holds photographs.

    Args:
        package: its name.
        version: that is fetched.
        sha256: of the `.deb` file.
        licence: of the photographs; the package's `copyright` file says it file by file.
        split: what they are for; all photographs of a package are for the same.
        folder: where they are in the package.
        files: photographs below it, no two of the same scene.
    """

    package: str
    version: str
    sha256: str
    licence: str
    split: str
    folder: str
    files: tuple[str, ...]


def packages() -> tuple[Package, ...]:
    """All packages of the list."""
    listed = json.loads((Path(__file__).parent / "photographs.json").read_text(encoding="utf-8"))
    return tuple(from_json(Package, entry) for entry in listed)


def save_photographs(output: Path, *, overwrite: bool = False) -> int:
    """Fetch all packages, and write the photographs as `SPLIT/PACKAGE-NAME.jpg`, and their licences.

    Args:
        output: folder to write.
        overwrite: replace a folder that is there.

    Returns:
        How many photographs there are.

    Raises:
        FileExistsError, PermissionError: from `whole_directory`.
        RuntimeError: a package could not be fetched.
        ValueError: a package is not the one that is listed.
    """
    check_output(output, overwrite=overwrite)
    count = 0
    with whole_directory(output, overwrite=overwrite) as folder, tempfile.TemporaryDirectory() as scratch:
        for package in packages():
            (folder / package.split).mkdir(exist_ok=True)
        for package, archive in zip(packages(), fetch(packages(), Path(scratch)), strict=True):
            for name, image in unpack(package, archive):
                image.save(folder / package.split / f"{package.package}-{name}.jpg", quality=_QUALITY)
                count += 1
        (folder / LICENCES_FILE).write_text(licences(), encoding="utf-8")
    return count


def fetch(wanted: tuple[Package, ...], scratch: Path) -> list[Path]:
    """Download packages with apt, whose lists and settings of the machine stay as they are.

    Raises:
        RuntimeError: there is no apt, no network, or no such version.
        ValueError: a file's SHA-256 is another.
    """
    scratch = scratch.absolute()
    for name in ("lists/partial", "cache/archives/partial", "debs"):
        (scratch / name).mkdir(parents=True)
    (scratch / "sources.list").write_text(_SOURCES, encoding="utf-8")
    (scratch / "status").touch()
    options = {
        "Dir::Etc::SourceList": "sources.list",
        "Dir::Etc::SourceParts": "none",
        "Dir::State::Lists": "lists",
        "Dir::State::Status": "status",
        "Dir::Cache": "cache",
    }
    apt = ["apt-get", "-q", "-o", "APT::Architecture=amd64", "-o", "APT::Sandbox::User=root"]
    apt += [part for name, path in options.items() for part in ("-o", f"{name}={scratch / path}")]
    _call([*apt, "update"], scratch)
    _call([*apt, "download", *(f"{each.package}={each.version}" for each in wanted)], scratch / "debs")
    return [_checked(each, scratch / "debs") for each in wanted]


def unpack(package: Package, archive: Path) -> Iterator[tuple[str, Image.Image]]:
    """Its photographs, RGB, at most 560 pixels on the shorter side, with a name that is safe in a path."""
    content = _call(["dpkg-deb", "--fsys-tarfile", str(archive)], archive.parent)
    with tarfile.open(fileobj=io.BytesIO(content)) as files:
        for name in package.files:
            member = files.extractfile(f"./{package.folder}/{name}")
            assert member is not None, f"{name} is a file of the package whose SHA-256 was checked"
            with Image.open(member) as image:
                yield _safe(name), _resized(image.convert("RGB"))


def licences() -> str:
    """Where every photograph comes from, as Markdown."""
    lines = ["# Photographs of Debian 12 (bookworm)", "", "Resized; authors: `copyright` of each package.", ""]
    lines += ["| package | version | licence | used to | photographs |", "|---|---|---|---|---|"]
    lines += [
        f"| {each.package} | {each.version} | {each.licence} | {each.split} | "
        f"{', '.join(_safe(name) for name in each.files)} |"
        for each in packages()
    ]
    return "\n".join(lines) + "\n"


def _resized(image: Image.Image) -> Image.Image:
    scale = _SHORT_SIDE / min(image.size)
    if scale >= 1:
        return image
    width, height = (round(length * scale) for length in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3)


def _safe(name: str) -> str:
    """`Path/contents/images/2560x1600.jpg` -> `Path`; else the file's name without suffix."""
    parts = Path(name).parts
    return parts[0] if "contents" in parts else Path(name).stem


def _checked(package: Package, folder: Path) -> Path:
    (path,) = folder.glob(f"{package.package}_*.deb")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != package.sha256:
        raise ValueError(
            f"{package.package} {package.version} has SHA-256 {package.sha256}, got {found}. Check the mirror that "
            "apt reads."
        )
    return path


def _call(command: list[str], folder: Path) -> bytes:
    """What it prints."""
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RuntimeError(f"The photographs are fetched with {command[0]}, which did not work: {error}.") from error
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise RuntimeError(f"The photographs are fetched with {command[0]}, which failed: {' '.join(last)}")
    return done.stdout


def _command(
    output: Annotated[Path, typer.Option(help="Folder to write.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")] = False,
) -> None:
    """Fetch 80 photographs from six Debian packages (220 MB), with their licences."""
    try:
        print(f"wrote {output}: {save_photographs(output, overwrite=overwrite)} photographs")
    except (OSError, RuntimeError, ValueError) as error:
        print(f"Error: {error}")
        raise typer.Exit(1) from error


def main() -> None:
    """The command line of `scripts/real_photographs.py`."""
    typer.run(_command)
