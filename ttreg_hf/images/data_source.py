"""Where images come from, as data: kept in results, put into words only when it is printed."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

LOCAL_FOLDER = "a local folder"


@dataclass(frozen=True)
class DataSource:
    """A data set on the Hub, or images on this machine.

    Args:
        repo_id: of a data set on the Hub.
        config: of that data set, if it has several.
        split: of a data set.
        revision: commit of the data set on the Hub, if it was pinned.
        seed: that the images were shuffled with; `None`: in the order in which they are stored.
        local: path of a folder or file.
        description: what the images are, where they have neither id nor path.
    """

    repo_id: str | None = None
    config: str | None = None
    split: str | None = None
    revision: str | None = None
    seed: int | None = None
    local: str | None = None
    description: str | None = None

    @classmethod
    def of(cls, images: Any) -> "DataSource":
        """What can be told of images handed over in Python; not a data set's name, which may be that of a folder."""
        if isinstance(images, (str, Path)):
            return cls(local=str(images))
        return cls(description=type(images).__name__)

    def __str__(self) -> str:
        name = self.repo_id or self.local or self.description or "images"
        parts = ", ".join(part for part in (self.config, self.split) if part)
        shuffled = "" if self.seed is None else f", shuffled with seed {self.seed}"
        return f"{name} ({parts}){shuffled}" if parts else f"{name}{shuffled}"

    def without_local_path(self) -> "DataSource":
        """The same, which does not say where somebody keeps files."""
        return replace(self, local=LOCAL_FOLDER) if self.local else self

    def may_share_images_with(self, other: "DataSource") -> bool:
        """Whether an image of one may be one of the other; of local folders whose path is not kept it may."""
        if LOCAL_FOLDER in (self.local, other.local):
            return bool(self.local and other.local)
        mine, theirs = ((each.repo_id, each.local, each.description, each.config) for each in (self, other))
        return mine == theirs and (self.split == other.split or None in (self.split, other.split))
