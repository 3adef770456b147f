"""From the words of a command line to images: a folder, files, a data set here or on the Hub, or the photographs."""

import random
from collections.abc import Generator, Sized
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ttreg_hf.images.data_source import DataSource
from ttreg_hf.images.decoder import IMAGE_SUFFIXES
from ttreg_hf.images.image_source import open_images
from ttreg_hf.images.photographs import photograph_paths
from ttreg_hf.known.checkpoints import known_checkpoint
from ttreg_hf.known.known_checkpoint import KnownCheckpoint

# of `datasets`, by file type
_BUILDERS = {".parquet": "parquet", ".tar": "webdataset", ".arrow": "arrow", ".zip": "imagefolder"}


@dataclass(frozen=True)
class NamedImages:
    """Images, and where they come from.

    Args:
        images: what `calibrate` and `inspect_norms` take.
        source: for people and for the record.
        image_column: column of a data set; `None` where there is none, or it is found by itself.
    """

    images: Any
    source: DataSource
    image_column: str | None = None

    @classmethod
    def of(cls, images: Any, image_column: str | None = None) -> "NamedImages":
        """Images that somebody hands over in Python, named or not."""
        return images if isinstance(images, cls) else cls(images, DataSource.of(images), image_column)

    def available(self, num_images: int) -> int | None:
        """How many of so many images there are, where that is known before they are read."""
        opened = open_images(self.images, image_column=self.image_column)
        holders = (opened, getattr(opened, "paths", None), getattr(opened, "dataset", None))
        return next((min(len(holder), num_images) for holder in holders if isinstance(holder, Sized)), None)


def find_images(
    dataset: str | None,
    *,
    split: str | None = None,
    image_column: str | None = None,
    token: str | bool | None = None,
    model: str | None = None,
    seed: int | None = None,
) -> NamedImages:
    """The images that a user means.

    Args:
        dataset: folder of images; image file; folder, file or pattern (`shards/*.tar`) of parquet, webdataset tar,
            Arrow or zip files; folder that `save_to_disk` wrote; or Hub id. `None`: the data set recommended for
            `model`, else the photographs.
        split: of a data set; `train` if there is one, else the first one.
        image_column: of a data set.
        token: for a private or gated data set.
        model: Hub id whose recommended data set is used.
        seed: puts the images into an order that depends on nothing else, without reading them. Streams have their
            files reordered; what is in a file stays in order, and a stream of one file as it is. `None`: the order
            in which they are stored.

    Raises:
        FileNotFoundError: neither a path nor a data set of this name.
        ConnectionError: the Hub cannot be reached.
        ValueError: a split that does not exist.
    """
    if dataset is None:
        known = known_checkpoint(model) if model else None
        if known is None:
            bundled = DataSource(description="the bundled photographs")
            return _shuffled(NamedImages(photograph_paths(), bundled), seed)
        found = _recommended(known, token)
    elif _is_local(dataset):
        found = _from_path(Path(dataset).expanduser(), dataset, split, image_column)
    else:
        found = _from_hub(dataset, split, image_column, token)
    return _shuffled(found, seed)


def _recommended(known: KnownCheckpoint, token: str | bool | None) -> NamedImages:
    dataset = known.dataset
    try:
        return _from_hub(dataset.id, dataset.split, dataset.image_column, token)
    except OSError as error:
        raise OSError(
            f"{error}. It is recommended for {known.base_model}; `--dataset FOLDER` takes other images."
        ) from error


def _is_local(dataset: str) -> bool:
    return Path(dataset).exists() or dataset.startswith((".", "/", "~")) or Path(dataset).suffix in _BUILDERS


def _from_path(path: Path, name: str, split: str | None, image_column: str | None) -> NamedImages:
    source = DataSource(local=name)
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return _saved_to_disk(path, name, split, image_column)
    if path.suffix in _BUILDERS and not path.is_dir():
        import datasets  # loaded only where it is needed: it takes a second

        if not any(path.parent.glob(path.name)):
            raise FileNotFoundError(f"`--dataset` names files that exist, got {name}. Check the path.")
        stream = datasets.load_dataset(_BUILDERS[path.suffix], data_files=str(path), split="train", streaming=True)
        return NamedImages(stream, source, image_column)
    if path.is_dir() and _holds_tables(path):
        stream, split = _stream(str(path), split, None)
        return NamedImages(stream, replace(source, split=split), image_column)
    return NamedImages(path, source, image_column)


def _holds_tables(folder: Path) -> bool:
    """Whether a folder holds files of a data set, and no images of its own."""
    suffixes = {path.suffix.lower() for path in folder.rglob("*") if path.is_file()}
    return not suffixes.isdisjoint(_BUILDERS) and suffixes.isdisjoint(IMAGE_SUFFIXES)


def _saved_to_disk(path: Path, name: str, split: str | None, image_column: str | None) -> NamedImages:
    import datasets

    found: Any = datasets.load_from_disk(str(path))
    if isinstance(found, datasets.DatasetDict):
        split = chosen_split(split, [str(known) for known in found], name)
        return NamedImages(found[split], DataSource(local=name, split=split), image_column)
    return NamedImages(found, DataSource(local=name), image_column)


def _from_hub(repo_id: str, split: str | None, image_column: str | None, token: str | bool | None) -> NamedImages:
    stream, split = _stream(repo_id, split, token)
    return NamedImages(stream, DataSource(repo_id=repo_id, split=split), image_column)


def _stream(name: str, split: str | None, token: str | bool | None) -> tuple[Any, str]:
    """A split of a data set on the Hub or in a folder, streamed, and which one it is."""
    import datasets

    with _named(name):
        split = chosen_split(split, datasets.get_dataset_split_names(name, token=token), name)
        return datasets.load_dataset(name, split=split, streaming=True, token=token), split


def chosen_split(split: str | None, splits: list[str], name: str) -> str:
    """The split that a user means.

    Args:
        split: as given; `None`: `train` if there is one, else the first one.
        splits: those of the data set.
        name: of the data set.

    Raises:
        ValueError: a split that does not exist.
    """
    if split is None:
        return "train" if "train" in splits else splits[0]
    if split not in splits:
        raise ValueError(f"`split` is one of {', '.join(splits)} for {name}, got {split!r}.")
    return split


@contextmanager
def _named(name: str) -> Generator[None]:
    """Failures of `datasets`, with the data set's name and what to do."""
    from datasets.exceptions import DatasetNotFoundError

    try:
        yield
    except DatasetNotFoundError as error:
        if "gated" in str(error):
            raise FileNotFoundError(
                f"The data set {name} is gated: its owner lets people in. Ask at "
                f"https://huggingface.co/datasets/{name}, then `hf auth login`, or pass `--token`."
            ) from error
        raise FileNotFoundError(
            f"`--dataset` is a folder, a file or a data set on the Hub, got {name!r}, which is none you can read. "
            "Check the name; for a private one `hf auth login`, or pass `--token`."
        ) from error
    except ConnectionError as error:
        raise ConnectionError(
            f"The data set {name} cannot be reached ({error}). Check the network, or give a folder with `--dataset`."
        ) from error


def _shuffled(found: NamedImages, seed: int | None) -> NamedImages:
    if seed is None:
        return found
    images, source = found.images, replace(found.source, seed=seed)
    if not hasattr(images, "shuffle"):
        paths = list(open_images(images))
        return NamedImages(random.Random(seed).sample(paths, len(paths)), source)
    if hasattr(images, "__len__"):  # a table: its rows; the order is not written beside its files
        return replace(found, images=images.shuffle(seed=seed, keep_in_memory=True), source=source)
    # a buffer of one, fed by one file at a time, keeps the images of a file together and in order
    shuffled = images.shuffle(seed=seed, buffer_size=1, max_buffer_input_shards=1)
    return replace(found, images=shuffled, source=source)
