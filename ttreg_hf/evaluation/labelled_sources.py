"""From the words of a command line to a data set with truths: here or on the Hub."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from ttreg_hf.images.data_sets import chosen_split, find_images
from ttreg_hf.images.data_source import DataSource


def find_labelled(
    dataset: str, *, split: str | None = None, token: str | bool | None = None
) -> tuple[Any, DataSource]:
    """The data set that a user means, and where it comes from.

    Args:
        dataset: as `find_images` takes it; a folder of images is read as `datasets`' imagefolder, whose labels are
            folders' names, and whose other columns are in `metadata.csv`, `.jsonl` or `.parquet`.
        split: `train` if there is one, else the first one.
        token: for a private or gated data set.

    Raises:
        FileNotFoundError: neither a path nor a data set of this name.
        ConnectionError: the Hub cannot be reached.
        ValueError: a split that does not exist.
    """
    found = find_images(dataset, split=split, token=token)
    if not isinstance(found.images, Path):
        return found.images, found.source
    import datasets

    if not found.images.is_dir():
        raise FileNotFoundError(f"`--dataset` is a data set with truths, got {dataset}. Give a folder, or a Hub id.")
    splits = datasets.load_dataset("imagefolder", data_dir=str(found.images), streaming=True)
    chosen = chosen_split(split, [str(known) for known in splits], dataset)
    return splits[chosen], replace(found.source, split=chosen)
