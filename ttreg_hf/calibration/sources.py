"""From the words of a command line to images: a folder, files, a data set here or on the Hub, or the photographs."""

import random
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ttreg_hf.calibration.images import open_images
from ttreg_hf.known_checkpoints import known_checkpoint
from ttreg_hf.photographs import photograph_paths

# of `datasets`, by file type
_BUILDERS = {".parquet": "parquet", ".tar": "webdataset", ".arrow": "arrow", ".zip": "imagefolder"}


@dataclass(frozen=True)
class ImageSource:
    """Images, and what to call them.

    Args:
        images: what `calibrate` and `inspect_norms` take.
        name: for people and for the record.
        image_column: column of a data set; `None` where there is none, or it is found by itself.
    """

    images: Any
    name: str
    image_column: str | None = None


def find_images(
    dataset: str | None,
    *,
    split: str | None = None,
    image_column: str | None = None,
    token: str | bool | None = None,
    model: str | None = None,
    seed: int | None = None,
) -> ImageSource:
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
            return _shuffled(ImageSource(photograph_paths(), "the bundled photographs"), seed)
        recommended = known.dataset
        source = _stream(recommended.id, recommended.split, recommended.image_column, token)
    elif _is_local(dataset):
        source = _from_path(Path(dataset).expanduser(), dataset, split, image_column)
    else:
        source = _stream(dataset, split, image_column, token)
    return _shuffled(source, seed)


def _is_local(dataset: str) -> bool:
    return Path(dataset).exists() or dataset.startswith((".", "/", "~")) or Path(dataset).suffix in _BUILDERS


def _from_path(path: Path, name: str, split: str | None, image_column: str | None) -> ImageSource:
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return _saved_to_disk(path, name, split, image_column)
    if path.suffix in _BUILDERS and not path.is_dir():
        import datasets  # loaded only where it is needed: it takes a second

        if not any(path.parent.glob(path.name)):
            raise FileNotFoundError(f"`--dataset` names files that exist, got {name}. Check the path.")
        stream = datasets.load_dataset(_BUILDERS[path.suffix], data_files=str(path), split="train", streaming=True)
        return ImageSource(stream, name, image_column)
    if path.is_dir() and _holds_tables(path):
        return _stream(str(path), split, image_column, None)
    return ImageSource(path, name, image_column)


def _holds_tables(folder: Path) -> bool:
    """Whether a folder holds files of a data set, and no images of its own."""
    suffixes = {path.suffix.lower() for path in folder.rglob("*") if path.is_file()}
    return not suffixes.isdisjoint(_BUILDERS) and suffixes.isdisjoint(Image.registered_extensions())


def _saved_to_disk(path: Path, name: str, split: str | None, image_column: str | None) -> ImageSource:
    import datasets

    found: Any = datasets.load_from_disk(str(path))
    if isinstance(found, datasets.DatasetDict):
        split = chosen_split(split, [str(known) for known in found], name)
        return ImageSource(found[split], f"{name} ({split})", image_column)
    return ImageSource(found, name, image_column)


def _stream(name: str, split: str | None, image_column: str | None, token: str | bool | None) -> ImageSource:
    import datasets

    with _named(name):
        split = chosen_split(split, datasets.get_dataset_split_names(name, token=token), name)
        stream = datasets.load_dataset(name, split=split, streaming=True, token=token)
    return ImageSource(stream, f"{name} ({split})", image_column)


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


def _shuffled(source: ImageSource, seed: int | None) -> ImageSource:
    if seed is None:
        return source
    images, name = source.images, f"{source.name}, shuffled with seed {seed}"
    if not hasattr(images, "shuffle"):
        paths = list(open_images(images))
        return ImageSource(random.Random(seed).sample(paths, len(paths)), name)
    if hasattr(images, "__len__"):  # a table: its rows; the order is not written beside its files
        return ImageSource(images.shuffle(seed=seed, keep_in_memory=True), name, source.image_column)
    # a buffer of one, fed by one file at a time, keeps the images of a file together and in order
    shuffled = images.shuffle(seed=seed, buffer_size=1, max_buffer_input_shards=1)
    return ImageSource(shuffled, name, source.image_column)
