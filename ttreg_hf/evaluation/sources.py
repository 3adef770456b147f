"""From the words of a command line to a data set with truths: here or on the Hub."""

from pathlib import Path
from typing import Any

from ttreg_hf.calibration.sources import chosen_split, find_images


def find_labelled(dataset: str, *, split: str | None = None, token: str | bool | None = None) -> tuple[Any, str]:
    """The data set that a user means, and what to call it.

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
    source = find_images(dataset, split=split, token=token)
    if not isinstance(source.images, Path):
        return source.images, source.name
    import datasets

    if not source.images.is_dir():
        raise FileNotFoundError(f"`--dataset` is a data set with truths, got {dataset}. Give a folder, or a Hub id.")
    found = datasets.load_dataset("imagefolder", data_dir=str(source.images), streaming=True)
    chosen = chosen_split(split or None, [str(known) for known in found], dataset)
    return found[chosen], f"{dataset} ({chosen})"
