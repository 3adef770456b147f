"""What lies in a folder, looked at as a whole: pictures, or the files of a data set, and what is beside them."""

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ttreg_hf.images.decoder import IMAGE_SUFFIXES

PICTURES = "pictures"
BUILDERS = {".parquet": "parquet", ".tar": "webdataset", ".arrow": "arrow", ".zip": "imagefolder"}
"""Of `datasets`, by the files of a data set."""
_OUT_OF_SIGHT = (".", "__", "@", "$")  # .thumbnails, ._a.jpg, __MACOSX, @eaDir, $RECYCLE.BIN
_METADATA = "metadata"  # of pictures: metadata.csv, .jsonl or .parquet
_CLEARLY = 0.95  # of the bytes
_MOST_SUFFIXES = 8  # that are named


@dataclass(frozen=True)
class Folder:
    """The files below a folder.

    Args:
        path: of the folder.
        files: by what they are, `"pictures"` or the suffix of a data set's files; sorted.
        others: how many of other kinds there are, by suffix.
        hidden: how many are in hidden places, or are hidden; none of them is used.
    """

    path: Path
    files: dict[str, tuple[Path, ...]]
    others: Counter[str]
    hidden: int

    @classmethod
    def look_into(cls, path: Path) -> "Folder":
        """Everything below a folder; links to other folders are not followed."""
        files: dict[str, list[Path]] = {}
        others: Counter[str] = Counter()
        hidden = 0
        for place, folders, names in os.walk(path):
            folders[:] = sorted(name for name in folders if not is_hidden(name))
            for name in names:
                file = Path(place, name)
                if is_hidden(name):
                    hidden += 1
                elif (kind := _kind_of(file)) is None:
                    others[file.suffix.lower() or name] += 1
                elif file.is_file():
                    files.setdefault(kind, []).append(file)
        return cls(path, {kind: tuple(sorted(found)) for kind, found in files.items()}, others, hidden)

    def kind(self) -> str | None:
        """What the folder clearly is: the kind that holds nearly all of the bytes; `None` without such files.

        Raises:
            ValueError: it may be meant as one or as the other.
        """
        if len(self.files) < 2:
            return next(iter(self.files), None)
        size = {kind: sum(file.stat().st_size for file in found) for kind, found in self.files.items()}
        largest = max(size, key=lambda kind: size[kind])
        if size[largest] >= _CLEARLY * sum(size.values()):
            return largest
        raise ValueError(
            f"A folder of images holds pictures, or the files of one data set, but {self.path} holds "
            f"{self.described()}. Say which are meant: a folder inside it, or a pattern such as "
            f"'{self.files[largest][0].parent}/*{self.files[largest][0].suffix}'."
        )

    def beside(self, kind: str) -> str:
        """Pictures and files of data sets that are not used because the folder is of this kind, in words."""
        others = {other: found for other, found in self.files.items() if other != kind}
        return f"{_counted(others)} beside them not used" if others else ""

    def described(self) -> str:
        """What was seen, in words."""
        seen = [_counted(self.files)] if self.files else []
        seen += [f"{count} {suffix}" for suffix, count in self.others.most_common(_MOST_SUFFIXES)]
        seen += [f"{self.hidden} hidden"] if self.hidden else []
        return ", ".join(seen) or "no file"


def is_hidden(name: str) -> bool:
    """Whether a file or folder is not for people to see: thumbnails, archives' leftovers, caches."""
    return name.startswith(_OUT_OF_SIGHT)


def _kind_of(file: Path) -> str | None:
    suffix = file.suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return PICTURES
    return suffix if suffix in BUILDERS and file.stem != _METADATA else None


def _counted(files: dict[str, tuple[Path, ...]]) -> str:
    return ", ".join(
        f"{len(found)} picture{'s' * (len(found) > 1)}" if kind == PICTURES else f"{len(found)} {kind}"
        for kind, found in files.items()
    )
