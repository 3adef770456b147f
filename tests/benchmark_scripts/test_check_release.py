"""What `nox -s release` refuses to publish."""

import io
import tarfile
import zipfile
from pathlib import Path

import check_release
import pytest

import ttreg_hf

IN_ARCHIVE = ("README.md", "LICENSE", "SECURITY.md", "noxfile.py", "tests/conftest.py", "scripts/reproduce.py")


def _release(folder: Path, version: str, wheel: dict[str, str], archive: tuple[str, ...] = IN_ARCHIVE) -> Path:
    """A folder like `dist/`, its wheel with what every wheel needs, and with `wheel` on top."""
    folder.mkdir()
    every = {f"ttreg_hf/{name}": "" for name in check_release.NEEDED}
    every[f"ttreg_hf-{version}.dist-info/METADATA"] = f"Name: ttreg_hf\nVersion: {version}\n\n"
    with zipfile.ZipFile(folder / f"ttreg_hf-{version}-py3-none-any.whl", "w") as file:
        for name, text in (every | wheel).items():
            file.writestr(name, text)
    with tarfile.open(folder / f"ttreg_hf-{version}.tar.gz", "w:gz") as file:
        for name in archive:
            file.addfile(tarfile.TarInfo(f"ttreg_hf-{version}/{name}"), io.BytesIO())
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A checkout that says 1.0rc1."""
    (tmp_path / "CITATION.cff").write_text("version: 1.0rc1\n")
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## [1.0rc1] - 2026-01-01\n")
    return tmp_path


def test_a_release_without_a_fault_passes(root: Path) -> None:
    assert list(check_release.faults(_release(root / "dist", "1.0rc1", {}), root)) == []


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        ("tests/test_it.py", "", "The wheel must hold the package alone, got tests/test_it.py."),
        ("ttreg_hf/benchmarks/speed.py", "", "got ttreg_hf/benchmarks/speed.py."),
        ("ttreg_hf/__pycache__/it.pyc", "", "got ttreg_hf/__pycache__/it.pyc."),
        ("ttreg_hf/.cache", "", "got ttreg_hf/.cache."),
        ("ttreg_hf/it.json", '"/home/ada/it"', "ttreg_hf/it.json of the wheel has /home/ada."),
        ("ttreg_hf/it.bin", "0" * 2_100_000, "at most 2,000,000 are allowed."),
    ],
)
def test_what_is_not_for_users_is_named(root: Path, name: str, text: str, fault: str) -> None:
    (found,) = check_release.faults(_release(root / "dist", "1.0rc1", {name: text}), root)
    assert found.endswith(fault)


def test_every_file_that_names_the_version_must_name_this_one(root: Path) -> None:
    found = list(check_release.faults(_release(root / "dist", "1.0rc2", {}), root))
    assert [fault.partition(" ")[0] for fault in found] == ["CITATION.cff", "CHANGELOG.md"]


def test_a_final_release_needs_addresses(root: Path) -> None:
    (root / "CITATION.cff").write_text("version: 1.0\n")
    (root / "CHANGELOG.md").write_text("## [1.0] - 2026-02-01\n")
    (found,) = check_release.faults(_release(root / "dist", "1.0", {}), root)
    assert found.endswith("fill in [project.urls] of pyproject.toml first.")


def test_what_lacks_is_named(root: Path) -> None:
    dist = _release(root / "dist", "1.0rc1", {}, archive=IN_ARCHIVE[1:])
    assert list(check_release.faults(dist, root)) == ["The source archive must hold README.md."]
    (dist / "ttreg_hf-1.0rc1.tar.gz").unlink()
    assert check_release.main([str(dist)]) == 1


def test_the_files_of_the_checkout_name_its_version() -> None:
    metadata = check_release.message_from_bytes(f"Version: {ttreg_hf.__version__}\n".encode())
    found = [fault for fault in check_release._faults_of_metadata(metadata, check_release.ROOT) if "line" in fault]
    assert found == []
