"""From the words of a command line to images: a folder, files, a data set here or on the Hub, or the photographs."""

import random
from collections.abc import Generator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ttreg_hf.images.data_source import DataSource
from ttreg_hf.images.decoder import IMAGE_SUFFIXES
from ttreg_hf.images.folder import BUILDERS, PICTURES, Folder
from ttreg_hf.images.image_source import open_images
from ttreg_hf.images.local_files import has_configurations, matching, stream_of_files, streams_of_folder
from ttreg_hf.images.photographs import photograph_paths
from ttreg_hf.known.checkpoints import known_checkpoint
from ttreg_hf.known.known_checkpoint import KnownCheckpoint


@dataclass(frozen=True)
class Part:
    """Which part of a data set is meant; `None` where it is left open.

    Args:
        config: configuration, of a data set with several.
        split: `train` if there is one, else the first one.
        image_column: found if there is just one with images.
    """

    config: str | None = None
    split: str | None = None
    image_column: str | None = None

    def none_of(self, *names: str, what: str) -> None:
        """Refuse options that do nothing.

        Raises:
            ValueError: one was given.
        """
        for name in names:
            if (value := getattr(self, name)) is not None:
                option = f"--{name.replace('_', '-')}"
                raise ValueError(f"`{option}` chooses in a data set, got {value!r} for {what}. Leave it out.")


@dataclass(frozen=True)
class NamedImages:
    """Images, and where they come from.

    Args:
        images: what `calibrate` and `inspect_norms` take.
        source: for people and for the record.
        image_column: column of a data set; `None` where there is none, or it is found by itself.
        note: what lies beside them and is not used.
        photographs: where several images are crops of one photograph, the number of the photograph of each image, in
            their order; `None`: every image is a photograph of its own.
    """

    images: Any
    source: DataSource
    image_column: str | None = None
    note: str = ""
    photographs: Sequence[int] | None = None

    def photograph_of(self, place: int) -> int:
        """The photograph of the image at a place of the order.

        Raises:
            ValueError: `photographs` ends before it.
        """
        if self.photographs is None:
            return place
        if place >= len(self.photographs):
            raise ValueError(
                f"`photographs` holds one number an image, got {len(self.photographs)} for more images. Give one each."
            )
        return self.photographs[place]

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
    config: str | None = None,
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
        config: configuration of a data set with several.
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
        ValueError: a configuration or split that does not exist or that the source does not have, or a folder that
            may be meant in more than one way.
    """
    part = Part(config, split, image_column)
    if dataset is not None:
        found = _from_path(dataset, part) if is_local(dataset) else _from_hub(dataset, part, token)
    elif (known := known_checkpoint(model) if model else None) is not None:
        found = _recommended(known, part, token)
    else:
        part.none_of("config", "split", "image_column", what="the bundled photographs")
        found = NamedImages(photograph_paths(), DataSource(description="the bundled photographs"))
    return _shuffled(found, seed)


def _recommended(known: KnownCheckpoint, part: Part, token: str | bool | None) -> NamedImages:
    dataset = known.dataset
    part = replace(part, split=part.split or dataset.split, image_column=part.image_column or dataset.image_column)
    try:
        return _from_hub(dataset.id, part, token)
    except OSError as error:
        raise OSError(
            f"{error}. It is recommended for {known.base_model}; `--dataset FOLDER` takes other images."
        ) from error


def is_local(dataset: str) -> bool:
    """Whether a path is meant, and no data set of the Hub."""
    is_no_id = dataset.count("/") > 1 or "*" in dataset or dataset.startswith((".", "/", "~"))
    return is_no_id or Path(dataset).exists() or Path(dataset).suffix.lower() in (*BUILDERS, *IMAGE_SUFFIXES)


def _from_path(name: str, part: Part) -> NamedImages:
    path = Path(name).expanduser()
    if path.is_dir():
        return _from_folder(path, name, part)
    if not path.exists() and path.suffix not in BUILDERS and "*" not in path.name:
        return NamedImages(path, DataSource(local=name))  # an error where it is opened
    files = matching(name)
    part.none_of("config", "split", what=f"the files {name}")
    suffixes = {file.suffix.lower() for file in files}
    if suffixes.isdisjoint(BUILDERS):
        part.none_of("image_column", what=f"the files {name}")
        return NamedImages(path if files == [path] else files, DataSource(local=name))
    if len(suffixes) > 1:
        raise ValueError(f"`--dataset` names files of one kind, got {', '.join(sorted(suffixes))} of {name}.")
    return NamedImages(stream_of_files(files), DataSource(local=name), part.image_column)


def _from_folder(path: Path, name: str, part: Part) -> NamedImages:
    source = DataSource(local=name)
    if (path / "dataset_dict.json").is_file() or all(
        (path / file).is_file() for file in ("state.json", "dataset_info.json")
    ):
        return _saved_to_disk(path, name, part)
    if has_configurations(path):
        found = _from_hub(str(path), part, None)
        return replace(found, source=replace(found.source, repo_id=None, local=name))
    folder = Folder.look_into(path)
    kind = folder.kind()
    if kind in (None, PICTURES):
        part.none_of("config", "split", "image_column", what=f"the folder of pictures {name}")
        return NamedImages(path, source, note=folder.beside(PICTURES))
    part.none_of("config", what=f"the folder {name}")
    splits = streams_of_folder(folder, kind)
    split = chosen_split(part.split, list(splits), name)
    return NamedImages(splits[split], replace(source, split=split), part.image_column, note=folder.beside(kind))


def _saved_to_disk(path: Path, name: str, part: Part) -> NamedImages:
    import datasets

    part.none_of("config", what=f"the folder {name}, which holds one")
    found: Any = datasets.load_from_disk(str(path))
    if isinstance(found, datasets.DatasetDict):
        split = chosen_split(part.split, [str(known) for known in found], name)
        return NamedImages(found[split], DataSource(local=name, split=split), part.image_column)
    part.none_of("split", what=f"the folder {name}, which holds one")
    return NamedImages(found, DataSource(local=name), part.image_column)


def _from_hub(repo_id: str, part: Part, token: str | bool | None) -> NamedImages:
    """A split of a data set on the Hub, or of a local copy of one, streamed."""
    import datasets

    config = part.config
    with _named(repo_id):
        split = chosen_split(part.split, _split_names(repo_id, config, token), repo_id)
        stream = datasets.load_dataset(repo_id, config, split=split, streaming=True, token=token)
    return NamedImages(stream, DataSource(repo_id=repo_id, config=config, split=split), part.image_column)


def _split_names(name: str, config: str | None, token: str | bool | None) -> list[str]:
    """The splits of a configuration, or of the one that serves by default.

    Raises:
        ValueError: a configuration that does not exist, or none of several.
    """
    import datasets

    try:
        return datasets.get_dataset_split_names(name, config, token=token)
    except ValueError as error:
        configs = datasets.get_dataset_config_names(name, token=token)
        if config in configs or (config is None and len(configs) < 2):
            raise
        got = "none" if config is None else repr(config)
        raise ValueError(f"`--config` is one of {', '.join(configs)} for {name}, got {got}.") from error


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
        return replace(found, images=random.Random(seed).sample(paths, len(paths)), source=source)
    if hasattr(images, "__len__"):  # a table: its rows; the order is not written beside its files
        return replace(found, images=images.shuffle(seed=seed, keep_in_memory=True), source=source)
    # a buffer of one, fed by one file at a time, keeps the images of a file together and in order
    shuffled = images.shuffle(seed=seed, buffer_size=1, max_buffer_input_shards=1)
    return replace(found, images=shuffled, source=source)
