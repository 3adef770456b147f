"""Folders appear whole or not at all."""

from pathlib import Path

import pytest

from ttreg_hf.writing import check_output, whole_directory


def _tree(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def _fail_halfway(folder: Path, error: type[BaseException]) -> None:
    with whole_directory(folder, overwrite=True) as unfinished:
        (unfinished / "c").write_text("half")
        raise error


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A folder that holds something."""
    folder = tmp_path / "out"
    (folder / "sub").mkdir(parents=True)
    (folder / "a").write_text("old")
    (folder / "sub" / "b").write_text("old too")
    return folder


def test_a_folder_gets_its_name_at_the_end(tmp_path):
    out = tmp_path / "new" / "out"
    with whole_directory(out) as folder:
        (folder / "a").write_text("1")
        assert not out.exists()
        assert folder.parent == out.parent  # the same disk, so that the last step is one rename
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
        if Path(target) == old and self.suffix == ".part":
            raise OSError("disk trouble")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_for_the_new_folder)
    with pytest.raises(OSError, match="disk trouble"), whole_directory(old, overwrite=True) as folder:
        (folder / "c").write_text("new")
    assert _tree(old) == {"a": "old", "sub/b": "old too"}


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
    monkeypatch.setattr("ttreg_hf.writing.os.access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(PermissionError, match=rf"new/out cannot be written: {tmp_path} is not writable"):
        check_output(tmp_path / "new" / "out", overwrite=True)


def test_checking_makes_nothing(tmp_path):
    check_output(tmp_path / "new" / "out", overwrite=False)
    assert list(tmp_path.iterdir()) == []
