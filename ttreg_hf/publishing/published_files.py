"""Which files of a checkpoint folder are published: those that this tool makes, and licences. No others."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

import ttreg_hf.modeling
from ttreg_hf.calibration.calibration_result import JSON_FILE, TENSOR_FILE
from ttreg_hf.evaluation.evaluation_result import EVALUATION_FILE
from ttreg_hf.records import read_json

CONFIG, CARD, PICTURES = "config.json", "README.md", "pictures"
EXPECTED_OUTPUTS, BASE_WEIGHTS = "expected_outputs.json", "base_weights.json"
CONSTANTS_FILE = "test_time_register_constants.safetensors"  # of a repository that holds no weights, in constant mode
DEMO_LINK = "demo.json"  # names the Space that shows the checkpoint
_INDEX = "model.safetensors.index.json"
_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")
_PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_OF_PROCESSORS = (  # image processors, and tokenizers of models that read text too
    *("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json", "generation_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
    *("vocab.txt", "merges.txt", "tokenizer.model", "spiece.model", "chat_template.json", "chat_template.jinja"),
)
_LICENCES = ("license*", "licence*", "notice*", "copying*", "use_policy*")
_LICENCE_SUFFIXES = ("", ".md", ".txt", ".pdf")


def checkpoint_files(directory: str | Path) -> dict[str, Path]:
    """The files of a checkpoint that are published: path in the repository -> file, sorted.

    Raises:
        ValueError: one of them is a link that leaves the folder, or the list of shards names another file.
    """
    directory = Path(directory)
    files = {name: path for name, path in _files_below(directory) if is_published(name)}
    for path in files.values():
        _check_inside(path, directory)
    if _INDEX in files:
        _check_index(files)
    return dict(sorted(files.items()))


def other_files(directory: str | Path) -> list[str]:
    """The files of a folder that are not published, but for hidden ones."""
    return sorted(name for name, _ in _files_below(Path(directory)) if not is_published(name))


def is_published(name: str) -> bool:
    """Whether a file of this name is one that this tool makes, or a licence."""
    parent, _, last = name.rpartition("/")
    if parent:
        return parent == PICTURES and PurePosixPath(last).suffix.lower() in _PICTURE_SUFFIXES
    return name in (CONFIG, CARD, EXPECTED_OUTPUTS, *_OF_PROCESSORS) or is_written_by_us(name) or is_licence(name)


def is_licence(name: str) -> bool:
    """Whether a file of a repository holds a licence, or what a licence wants to be passed on."""
    is_named_so = any(fnmatchcase(name.lower(), pattern) for pattern in _LICENCES)
    return is_named_so and "/" not in name and PurePosixPath(name).suffix.lower() in _LICENCE_SUFFIXES


def is_weight_file(name: str) -> bool:
    """Whether a file of a checkpoint holds weights, or says which shard holds which."""
    return _WEIGHTS.fullmatch(name) is not None


def is_written_by_us(name: str) -> bool:
    """Whether a file of a repository is one that pushing writes, so that pushing again may take it away."""
    ours = (BASE_WEIGHTS, CONSTANTS_FILE, JSON_FILE, TENSOR_FILE, EVALUATION_FILE, DEMO_LINK, *suitcase_files())
    return is_weight_file(name) or name in ours


def suitcase_files() -> dict[str, bytes]:
    """The code that travels with a checkpoint, as it is installed: name -> content."""
    folder = Path(ttreg_hf.modeling.__file__).parent
    return {path.name: path.read_bytes() for path in folder.glob("*.py") if path.name != "__init__.py"}


def pictures_of(names: Iterable[str]) -> list[str]:
    """Paths in the repository of its pictures."""
    return [name for name in names if name.startswith(f"{PICTURES}/")]


def _files_below(directory: Path) -> Iterator[tuple[str, Path]]:
    """Name and path of all files; hidden ones, and what Python leaves behind, are left out."""
    for parent, folders, names in os.walk(directory):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__pycache__")
        for name in folders:
            if os.path.islink(os.path.join(parent, name)):
                _check_inside(Path(parent, name), directory)
        for name in sorted(names):
            if not name.startswith("."):
                yield Path(parent, name).relative_to(directory).as_posix(), Path(parent, name)


def _check_inside(path: Path, directory: Path) -> None:
    if not path.resolve().is_relative_to(directory.resolve()):
        raise ValueError(
            f"Files of a checkpoint lie in its folder, but {path} links to {path.resolve()}. Put a copy in its place."
        )


def _check_index(files: Mapping[str, Path]) -> None:
    """The list of shards names files of the checkpoint only."""
    remedy = "Save the checkpoint again."
    weight_map = read_json(files[_INDEX], remedy=remedy).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ValueError(f"{files[_INDEX]} must say which shard holds which weight, got no `weight_map`. {remedy}")
    if missing := sorted(set(map(str, weight_map.values())) - set(files)):
        raise ValueError(f"{_INDEX} names files of the checkpoint, got {missing[0]!r}, which is none. {remedy}")
