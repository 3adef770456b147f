"""Folders appear whole or not at all, and nothing is destroyed that this package did not make."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from ttreg_hf.writing import check_output, check_space, foreign_files, scratch_directory, whole_directory, write_file
from ttreg_hf.writing import write_into as write_into_folder
from ttreg_hf.writing.made_files import MADE_FILES

# a process that fills an output, says so, and waits for a line before it ends
FILL = """
import sys
from ttreg_hf.writing import scratch_directory, whole_directory
with scratch_directory() if sys.argv[1] == "scratch" else whole_directory(sys.argv[1]) as folder:
    (folder / "weights").write_text("large")
    print(folder, flush=True)
    sys.stdin.readline()
"""


def _tree(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in folder.rglob("*")
        if path.is_file() and path.name != MADE_FILES
    }


def _fail_halfway(folder: Path, error: type[BaseException]) -> None:
    with whole_directory(folder, overwrite=True) as unfinished:
        (unfinished / "c").write_text("half")
        raise error


def _make(folder: Path, meanwhile: Callable[[], object], *, overwrite: bool = False) -> None:
    with whole_directory(folder, overwrite=overwrite) as unfinished:
        (unfinished / "c").write_text("new")
        meanwhile()


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A folder that was made before."""
    with whole_directory(tmp_path / "out") as folder:
        (folder / "sub").mkdir(parents=True)
        (folder / "a").write_text("old")
        (folder / "sub" / "b").write_text("old too")
    return tmp_path / "out"


@contextmanager
def filling(place: Path | str, **variables: str) -> Generator[tuple[subprocess.Popen, Path]]:
    """A process that is filling an output, and its work folder; killed at the end if it is there still."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), **variables}
    with subprocess.Popen(
        [sys.executable, "-c", FILL, str(place)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as child:
        try:
            yield child, Path(child.stdout.readline().strip())
        finally:
            child.kill()


def test_a_folder_gets_its_name_at_the_end(tmp_path):
    out = tmp_path / "new" / "out"
    with whole_directory(out) as folder:
        (folder / "a").write_text("1")
        assert not out.exists()
        assert folder.parent.parent == out.parent  # the same disk, so that the last step is one rename
    assert _tree(tmp_path) == {"new/out/a": "1"}


def test_a_folder_is_as_readable_as_any_other(tmp_path):
    (tmp_path / "other").mkdir()
    with whole_directory(tmp_path / "out"):
        pass
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_nothing_remains_after_an_error(tmp_path, error):
    with pytest.raises(error):
        _fail_halfway(tmp_path / "out", error)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "out").mkdir()
    with whole_directory(tmp_path / "out") as folder:
        (folder / "a").write_text("1")
    assert _tree(tmp_path) == {"out/a": "1"}


def test_a_folder_that_holds_something_is_refused_before_any_work(old):
    before = _tree(old)
    with (
        pytest.raises(FileExistsError, match=r"out exists and is not empty\. Give another one, or `--overwrite`"),
        whole_directory(old),
    ):
        pytest.fail("the block must not run")
    assert _tree(old.parent) == {f"out/{name}": text for name, text in before.items()}


def test_overwriting_replaces_the_whole_folder(old):
    with whole_directory(old, overwrite=True) as folder:
        (folder / "c").write_text("new")
        assert _tree(old) == {"a": "old", "sub/b": "old too"}
    assert _tree(old.parent) == {"out/c": "new"}
    assert [path.name for path in old.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failed_overwrite_leaves_the_old_folder(old, error):
    with pytest.raises(error):
        _fail_halfway(old, error)
    assert _tree(old.parent) == {"out/a": "old", "out/sub/b": "old too"}
    assert [path.name for path in old.parent.iterdir()] == ["out"]


def test_a_last_step_that_fails_leaves_the_old_folder(old, monkeypatch):
    rename = Path.rename

    def fail_for_the_new_folder(self: Path, target: Path) -> Path:
        if Path(target) == old and self.name == "finished":
            raise OSError("disk trouble")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_for_the_new_folder)
    with (
        pytest.raises(OSError, match=r"disk trouble .* The finished output lies in .*/out-1\.") as told,
        whole_directory(old, overwrite=True) as folder,
    ):
        (folder / "c").write_text("new")
    assert str(old) in str(told.value)
    assert _tree(old) == {"a": "old", "sub/b": "old too"}
    assert _tree(old.with_name("out-1")) == {"c": "new"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_is_never_replaced_by_a_folder(tmp_path, overwrite):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(FileExistsError, match=r"The output is a folder, but .*/out is a file\. Give another path"):
        check_output(tmp_path / "out", overwrite=overwrite)


def test_a_place_that_cannot_hold_a_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("a file")
    with pytest.raises(PermissionError, match=r"/file/sub/out cannot be written: .*/file is not writable"):
        check_output(tmp_path / "file" / "sub" / "out", overwrite=False)


def test_a_place_without_permission_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("ttreg_hf.writing.folders.os.access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(PermissionError, match=rf"new/out cannot be written: {tmp_path} is not writable"):
        check_output(tmp_path / "new" / "out", overwrite=True)


def test_checking_makes_nothing(tmp_path):
    check_output(tmp_path / "new" / "out", overwrite=False)
    assert list(tmp_path.iterdir()) == []


# what is not ours


@pytest.mark.parametrize("name", ["cat.jpg", "sub/cat.jpg", ".hidden", "sub"])
def test_overwriting_is_refused_where_something_lies_that_was_not_made(old, name):
    if name == "sub":
        shutil.rmtree(old / "sub")
        os.symlink("/", old / "sub2")  # a link to a folder is something too
        name = "sub2"
    else:
        (old / name).write_text("mine")
    with (
        pytest.raises(FileExistsError, match=rf"holds {name}, which it did not make\. Move that away"),
        whole_directory(old, overwrite=True),
    ):
        pytest.fail("the block must not run")
    assert os.path.lexists(old / name)


def test_a_folder_without_a_list_is_never_overwritten(tmp_path):
    (tmp_path / "photos").mkdir()
    for count in range(4):
        (tmp_path / "photos" / f"{count}.jpg").write_text("a photograph")
    with pytest.raises(FileExistsError, match=r"holds 0\.jpg and 3 more, which it did not make"):
        check_output(tmp_path / "photos", overwrite=True)


def test_a_damaged_list_makes_nothing_ours(old):
    for text in ("", "{", "3", "null"):
        (old / MADE_FILES).write_text(text)
        assert foreign_files(old) == ["a", "sub/b"]


def test_what_looking_at_a_folder_leaves_is_no_obstacle(old):
    (old / "__pycache__").mkdir()
    (old / "__pycache__" / "a.pyc").write_text("")
    (old / ".DS_Store").write_text("")
    check_output(old, overwrite=True)


def test_files_written_into_an_output_later_are_made_too(tmp_path):
    with whole_directory(tmp_path / "out") as folder, whole_directory(folder / "inner") as inner:
        (inner / "a").write_text("1")
    write_into_folder(tmp_path / "out" / "inner", "b", b"2")
    write_file(tmp_path / "out" / "inner" / "c", b"3")
    assert foreign_files(tmp_path / "out") == ["inner/c"]
    write_into_folder(tmp_path, "d", b"4")  # a folder that is nobody's output gets no list
    assert not (tmp_path / MADE_FILES).exists()


@pytest.mark.parametrize("is_folder", [True, False])
def test_what_appears_meanwhile_stays_and_the_result_is_kept(tmp_path, is_folder):
    out = tmp_path / "out"

    def put_something_there() -> None:
        if is_folder:
            out.mkdir()
            (out / "photo").write_text("mine")
        else:
            out.write_text("mine")
        (tmp_path / "out-1").mkdir()

    with pytest.raises(FileExistsError, match=r"could not take it: .* The finished output lies in .*/out-2\.$"):
        _make(out, put_something_there)
    assert _tree(tmp_path) == {"out/photo" if is_folder else "out": "mine", "out-2/c": "new"}


def test_what_appears_in_a_folder_that_is_overwritten_stays(old):
    with pytest.raises(FileExistsError, match=r"holds photo, which it did not make.*lies in .*/out-1\.$"):
        _make(old, lambda: (old / "photo").write_text("mine"), overwrite=True)
    assert _tree(old) == {"a": "old", "sub/b": "old too", "photo": "mine"}
    assert _tree(old.with_name("out-1")) == {"c": "new"}


# several processes


def test_of_two_processes_exactly_one_writes_an_output(tmp_path):
    with filling(tmp_path / "out") as (child, work):
        assert (work / "weights").is_file()
        with (
            pytest.raises(FileExistsError, match=r"another one is writing .*/out now"),
            whole_directory(tmp_path / "out", overwrite=True),
        ):
            pytest.fail("the block must not run")
        with whole_directory(tmp_path / "out.b"):  # another output beside it is free
            pass
        assert (work / "weights").is_file()
        child.communicate("\n")
        assert child.returncode == 0
    assert _tree(tmp_path) == {"out/weights": "large"}


def test_the_next_process_removes_what_a_killed_one_left(tmp_path):
    with filling(tmp_path / "out") as (child, work):
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert (work / "weights").is_file()
    with whole_directory(tmp_path / "out") as folder:
        assert not work.exists()
        (folder / "a").write_text("1")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_a_folder_that_a_killed_process_was_replacing_comes_back(old):
    work = old.parent / ".out.abcdefgh.part"
    work.mkdir()
    old.rename(work / "replaced")
    with pytest.raises(FileExistsError, match="could not take it"), whole_directory(old):
        assert _tree(old) == {"a": "old", "sub/b": "old too"}
    assert _tree(old) == {"a": "old", "sub/b": "old too"}


def test_scratch_folders_are_apart_and_a_killed_ones_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr("ttreg_hf.writing.claims.tempfile.tempdir", str(tmp_path))
    with filling("scratch", TMPDIR=str(tmp_path)) as (child, work):
        with scratch_directory() as mine, scratch_directory() as other:
            assert len({work, mine, other}) == 3
        assert (work / "weights").is_file()
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert work.is_dir()
    with scratch_directory():
        assert not work.exists()
    assert list(tmp_path.iterdir()) == []


def test_errors_in_a_scratch_folder_pass(tmp_path):
    with pytest.raises(OSError, match="mine"), scratch_directory():
        raise OSError("mine")


def test_without_locks_outputs_are_written_and_nothing_of_others_removed(tmp_path, monkeypatch):
    (tmp_path / ".out.abcdefgh.part").mkdir()
    monkeypatch.setattr("ttreg_hf.writing.claims.fcntl", None)
    with whole_directory(tmp_path / "out") as folder:
        (folder / "a").write_text("1")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.abcdefgh.part", "out"]


# places that cannot take a folder


def test_a_link_is_refused(tmp_path):
    (tmp_path / "there").mkdir()
    for target in ("there", "nowhere"):
        (tmp_path / "out").unlink(missing_ok=True)
        os.symlink(tmp_path / target, tmp_path / "out")
        with pytest.raises(FileExistsError, match=rf"out is a link to .*/{target}\. Give that"):
            check_output(tmp_path / "out", overwrite=True)


@pytest.mark.parametrize("place", [".", "", "..", "../here", "./"])
def test_the_current_folder_and_those_that_hold_it_are_refused(tmp_path, monkeypatch, place):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(FileExistsError, match=r"is the current folder, or holds it.*Give a folder below it, such as"):
        check_output(place, overwrite=True)
    with whole_directory("../here/there") as folder:
        (folder / "a").write_text("1")
    assert _tree(tmp_path) == {"here/there/a": "1"}


def test_a_mount_point_is_refused(tmp_path, monkeypatch):
    (tmp_path / "disk").mkdir()
    monkeypatch.setattr("ttreg_hf.writing.folders.os.path.ismount", lambda path: Path(path) == tmp_path / "disk")
    with pytest.raises(FileExistsError, match=r"disk is a mount point, .* such as .*/disk/result\."):
        check_output(tmp_path / "disk", overwrite=True)
    check_output(tmp_path / "disk" / "result", overwrite=True)


# full disks


def test_a_disk_with_too_little_space_is_refused_before_the_work(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=5_000_000)
    monkeypatch.setattr("ttreg_hf.writing.disk.shutil.disk_usage", lambda path: usage)
    remedy = "Free some space there, or give an output on another disk"
    with pytest.raises(OSError, match=rf"67 MB will be written, but 5 MB are free in {tmp_path}\. {remedy}"):
        check_output(tmp_path / "new" / "out", overwrite=False)
    check_space(tmp_path, 4_000_000)
    assert list(tmp_path.iterdir()) == []


def _safetensors_on_a_full_disk() -> SafetensorError:
    try:
        save_file({"x": torch.zeros(1000)}, "/dev/full")
    except SafetensorError as error:
        return error
    return SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space"), OSError(errno.EDQUOT, "Quota"), None])
def test_a_disk_that_fills_up_is_named_with_the_remedy_and_nothing_remains(tmp_path, error):
    error = error or _safetensors_on_a_full_disk()

    def fill() -> None:
        raise error

    with pytest.raises(OSError, match=rf"^The disk is full in {tmp_path}\. Free some space there, or give an output"):
        _make(tmp_path / "out", fill)
    assert list(tmp_path.iterdir()) == []


def test_a_file_on_a_full_disk_is_named_too(tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("ttreg_hf.writing.files.os.replace", fail)
    with pytest.raises(OSError, match=f"The disk is full in {tmp_path}"):
        write_file(tmp_path / "a", b"1")
    assert list(tmp_path.iterdir()) == []


# permissions


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077, 0o002])
def test_all_that_is_written_follows_the_umask(tmp_path, mask):
    before = os.umask(mask)
    try:
        with whole_directory(tmp_path / "out") as folder:
            (folder / "sub").mkdir()
            save_file({"x": torch.zeros(2)}, folder / "sub" / "weights.safetensors")  # which keeps others out
            write_file(folder / "a", b"1")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "out").rglob("*")}
    assert modes.pop("sub") == 0o777 & ~mask == (tmp_path / "out").stat().st_mode & 0o777
    assert set(modes.values()) == {0o666 & ~mask}
    assert len(modes) == 3
