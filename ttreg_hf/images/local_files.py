"""Files on this machine as streams of `datasets`: parquet, tars, Arrow and zip files, in splits as they are named."""

import glob
import tarfile
import zipfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ttreg_hf.images.decoder import IMAGE_SUFFIXES
from ttreg_hf.images.folder import BUILDERS, PICTURES, Folder, is_hidden

_ZIP = ".zip"


def matching(pattern: str) -> list[Path]:
    """The files of a pattern such as `shards/*.tar`, or the one that is named; sorted.

    Raises:
        FileNotFoundError: there is none.
    """
    path = Path(pattern).expanduser()
    found = [path] if path.is_file() else [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
    if not found:
        raise FileNotFoundError(f"`--dataset` names files that exist, got {pattern}. Check the path.")
    return found


def stream_of_files(files: Sequence[Path]) -> Any:
    """Files of one kind as one stream."""
    import datasets  # loaded only where it is needed: it takes a second

    names, suffix = [str(file) for file in files], files[0].suffix.lower()
    with _named(names[0]):
        stream = datasets.load_dataset(BUILDERS[suffix], data_files=names, split="train", streaming=True)
    return _pictures_of(stream) if suffix == _ZIP else stream


def streams_of_folder(folder: Folder, kind: str) -> dict[str, Any]:
    """The splits of a folder that is of this kind, as streams; nothing else in it is read.

    Args:
        folder: that was looked into.
        kind: a suffix of `BUILDERS`; or pictures, with metadata and with labels named as their folders.
    """
    import datasets

    builder = "imagefolder" if kind == PICTURES else BUILDERS[kind]
    metadata = tuple(folder.path.rglob("metadata.*")) if kind == PICTURES else ()
    files = _by_split(folder, folder.files[kind], metadata)
    with _named(folder.path):
        splits = datasets.load_dataset(builder, data_files=files, streaming=True)
    return {str(split): _pictures_of(stream) if kind == _ZIP else stream for split, stream in splits.items()}


@contextmanager
def _named(place: object) -> Generator[None]:
    """Failures of `datasets`, which does not say of which files."""
    try:
        yield
    except (ValueError, OSError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise ValueError(f"{place} cannot be read as a data set: {error}. Check that the files are whole.") from error


def _pictures_of(stream: Any) -> Any:
    """Of an archive, undecoded: without documents, and without what macOS puts beside each file."""
    import datasets

    undecoded = stream.cast_column("image", datasets.Image(decode=False))
    return undecoded.filter(_is_picture)


def _is_picture(row: dict[str, Any]) -> bool:
    place = Path(row["image"]["path"].split("::")[0].partition("://")[2])
    return place.suffix.lower() in IMAGE_SUFFIXES and not any(map(is_hidden, place.parts))


def _by_split(folder: Folder, files: Sequence[Path], metadata: Sequence[Path]) -> dict[str, list[str]]:
    """Which files are of which split, by the rules of `datasets`; all of one where these do not cover them."""
    from datasets.data_files import DataFilesDict, get_data_patterns

    base, wanted = str(folder.path.absolute()), {str(file.absolute()) for file in files}
    found = DataFilesDict.from_patterns(get_data_patterns(base), base_path=base)
    beside = {str(file.absolute()) for file in metadata}
    splits = {split: sorted(wanted & set(names)) for split, names in found.items()}
    splits = {split: names + sorted(beside & set(found[split])) for split, names in splits.items() if names}
    covered = {name for names in splits.values() for name in names}
    return splits if wanted <= covered else {"train": sorted(wanted) + sorted(beside)}


def has_configurations(path: Path) -> bool:
    """Whether a folder is a copy of a data set of the Hub whose card says which files belong together."""
    from huggingface_hub.repocard import metadata_load

    card = path / "README.md"
    try:
        return card.is_file() and bool((metadata_load(card) or {}).get("configs"))
    except ValueError:  # a README of another kind
        return False
