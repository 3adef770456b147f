"""From the words of a command line to a data set with truths: here or on the Hub."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from ttreg_hf.images.data_sets import chosen_split, find_images
from ttreg_hf.images.data_source import DataSource
from ttreg_hf.images.folder import PICTURES, Folder
from ttreg_hf.images.local_files import has_configurations, streams_of_folder


def find_labelled(
    dataset: str, *, config: str | None = None, split: str | None = None, token: str | bool | None = None
) -> tuple[Any, DataSource]:
    """The data set that a user means, and where it comes from.

    Args:
        dataset: as `find_images` takes it; a folder of images is read as `datasets`' imagefolder, whose labels are
            folders' names, and whose other columns are in `metadata.csv`, `.jsonl` or `.parquet`.
        config: configuration of a data set with several.
        split: `train` if there is one, else the first one.
        token: for a private or gated data set.

    Raises:
        FileNotFoundError: neither a path nor a data set of this name, or no image in it.
        ConnectionError: the Hub cannot be reached.
        ValueError: a configuration or split that does not exist.
    """
    path = Path(dataset).expanduser()
    folder = Folder.look_into(path) if path.is_dir() else None
    if folder is None or has_configurations(path) or folder.kind() != PICTURES:
        found = find_images(dataset, config=config, split=split, token=token)
        if isinstance(found.images, (Path, list)):
            raise FileNotFoundError(
                f"`--dataset` is a data set with truths, got {dataset}. Give a folder with images, or a Hub id."
            )
        return found.images, found.source
    if config is not None:
        raise ValueError(f"`--config` chooses in a data set, got {config!r} for a folder of images. Leave it out.")
    splits = streams_of_folder(folder, PICTURES)
    chosen = chosen_split(split, list(splits), dataset)
    return splits[chosen], replace(DataSource(local=dataset), split=chosen)
