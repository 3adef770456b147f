"""The checkpoint folder: writes a patched model so that anyone can load it, and says which files are published."""

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import ModelCard
from transformers import AutoConfig, PreTrainedModel

import ttreg_hf.modeling
from ttreg_hf.applying import add_test_time_registers, published_register_neurons
from ttreg_hf.calibration.calibration_result import JSON_FILE, TENSOR_FILE, CalibrationResult
from ttreg_hf.calibration.verdict import FIXED
from ttreg_hf.evaluation.evaluation_result import EVALUATION_FILE, Evaluation, write_evaluation
from ttreg_hf.images.photographs import photographs_to_picture
from ttreg_hf.loading import ModelSource
from ttreg_hf.measuring.tower import VisionTower
from ttreg_hf.modeling.modeling_ttreg import TTRegConfigMixin, TTRegModelMixin
from ttreg_hf.pictures.picture_files import write_before_after
from ttreg_hf.publishing.card import merged_card, model_card
from ttreg_hf.publishing.output_check import EXPECTED_OUTPUTS, expected_outputs
from ttreg_hf.publishing.privacy import calibration_without_local_paths, config_without_local_paths
from ttreg_hf.writing import check_output, whole_directory, write_file

CONFIG, CARD, BASE_WEIGHTS, PICTURES = "config.json", "README.md", "base_weights.json", "pictures"
_PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_SUFFIXES = (".safetensors", ".json", ".md", *_PICTURE_SUFFIXES)
_INDEX = "model.safetensors.index.json"
_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")
_REFERENCE = re.compile(r"(\w+)\.\w+")  # of auto_map: file and class, in this folder


class VerdictError(ValueError):
    """The calibration says that this model should not be patched; the command line ends with its own exit code."""


def save_checkpoint(
    model: PreTrainedModel,
    directory: str | Path,
    *,
    processor: Any = None,
    calibration: CalibrationResult | None = None,
    pictures: Iterable[str | Path] = (),
    overwrite: bool = False,
    max_shard_size: int | str = "50GB",
) -> Path:
    """Write config, weights, travelling code, processor, card and calibration; the folder appears whole or not at all.

    It also holds what the model gives for two fixed images, by which `check_outputs` and `push_checkpoint` check
    it. Local paths are left out: the folder can be published as it is.

    Args:
        model: patched.
        directory: the checkpoint folder.
        processor: image processor to save beside it.
        calibration: the evidence for its neurons; of other weights than the model's it is kept, but the card shows
            none of its figures.
        pictures: image files to show on the card.
        overwrite: replace a folder that is there.
        max_shard_size: of a weight file, as in `save_pretrained`.

    Raises:
        TypeError: a model that is not patched.
        FileExistsError: the folder exists and is not empty.
        ValueError: the model's outputs are not finite.
    """
    if not isinstance(model, TTRegModelMixin):
        raise TypeError(
            f"A checkpoint is made of a patched model, got {type(model).__name__}. "
            "Use `add_test_time_registers(model, register_neurons)` first."
        )
    with whole_directory(directory, overwrite=overwrite) as folder:
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        fields = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        _write_json(folder / CONFIG, config_without_local_paths(fields))
        if processor is not None:
            processor.save_pretrained(folder)
        if calibration is not None:
            calibration = calibration_without_local_paths(calibration.beside(model))
            calibration.save(folder)
        for picture in pictures:
            (folder / PICTURES).mkdir(exist_ok=True)
            shutil.copyfile(picture, folder / PICTURES / Path(picture).name)
        _write_json(folder / EXPECTED_OUTPUTS, expected_outputs(model))
        card = model_card(read_config(folder), calibration, pictures=pictures_of(checkpoint_files(folder)))
        card.save(folder / CARD)
    return Path(directory)


def make_checkpoint(
    source: ModelSource,
    directory: str | Path,
    *,
    calibration: CalibrationResult | None = None,
    force: bool = False,
    overwrite: bool = False,
) -> TTRegModelMixin:
    """Load a base model, patch it, and write what `ttreg apply` leaves: a complete checkpoint folder with pictures.

    Args:
        source: of the base model.
        directory: the checkpoint folder.
        calibration: says which neurons; without it the published ones are taken.
        force: patch whatever the verdict is, and whatever weights it is of.
        overwrite: replace a folder that is there.

    Returns:
        The patched model that was written.

    Raises:
        FileExistsError: the folder exists and is not empty.
        ValueError: no neurons are published, or a model that cannot be patched.
        VerdictError: the calibration is `clean` or `unresolved`, or of other weights, and `force` is not set.
    """
    check_output(directory, overwrite=overwrite)
    if calibration is None:
        published_register_neurons(source.name_or_path)  # an error before the model is loaded, if there are none
    else:
        check_verdict(calibration, force=force)
    model, processor = source.model(), source.processor()
    neurons: Any = calibration
    shift_value = None
    if calibration is not None:
        check_verdict(found := calibration.beside(model), force=force)
        if found.on_other_weights:
            neurons, shift_value = found.register_neurons, found.shift_value
    patched = add_test_time_registers(model, neurons, shift_value=shift_value, base_model_revision=source.commit())
    tower, pictures = VisionTower.of(model), []
    with TemporaryDirectory() as scratch:
        if processor is not None:
            pictures = write_before_after(
                model,
                patched,
                photographs_to_picture(),
                processor,
                scratch,
                detection_layer=calibration.norms.detection_layer if calibration else tower.default_detection_layer,
                norm_threshold=calibration.norms.norm_threshold if calibration else None,
                caption=f"{source.name_or_path.rstrip('/').split('/')[-1]}, before and after",
            )
        save_checkpoint(
            patched,
            directory,
            processor=source.whole_processor(model),
            calibration=calibration,
            pictures=pictures,
            overwrite=overwrite,
        )
    return patched


def check_verdict(calibration: CalibrationResult, *, force: bool) -> None:
    """Refuse to make or publish a patched model that is not known to be better than its base model.

    Raises:
        VerdictError: the verdict is `clean` or `unresolved`, or was found on other weights, and `force` is not set.
    """
    if force:
        return
    if calibration.verdict != FIXED:
        raise VerdictError(
            "A patched model is one that patching helps, but the verdict of its calibration is "
            f"{calibration.headline}. `--force` (`force=True`) goes on all the same."
        )
    if calibration.on_other_weights:
        raise VerdictError(
            f"A calibration belongs to the weights that were measured, those of {calibration.provenance.model}, but "
            "this model has others. Calibrate it; `--force` (`force=True`) moves these neurons all the same, and the "
            "card says that nothing was measured."
        )


def add_evaluation(directory: str | Path, evaluation: Evaluation) -> list[Path]:
    """Write an evaluation into a checkpoint folder, and its figures onto the card; what its owner wrote there stays.

    Returns:
        The files written.

    Raises:
        FileNotFoundError, ValueError: not the folder of a patched checkpoint, or a file in it is not as written.
    """
    directory = Path(directory)
    config, calibration, pictures = read_config(directory), read_calibration(directory), checkpoint_files(directory)
    evaluations = write_evaluation(directory, evaluation)
    card = model_card(config, calibration, evaluations=evaluations, pictures=pictures_of(pictures))
    if (directory / CARD).is_file():
        card = merged_card(card, ModelCard.load(directory / CARD))
    write_file(directory / CARD, str(card).encode())
    return [directory / EVALUATION_FILE, directory / CARD]


def read_config(directory: Path) -> Any:
    """The config of a checkpoint folder, checked.

    Raises:
        FileNotFoundError: no config.json.
        ValueError: not that of a patched model, or it names code outside the folder.
    """
    if not (directory / CONFIG).is_file():
        raise FileNotFoundError(
            f"A checkpoint folder holds {CONFIG} and weights, but {directory} has no {CONFIG}. Make one with "
            "`ttreg apply MODEL --output CKPT`."
        )
    fields = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
    for reference in (fields.get("auto_map") or {}).values():
        found = _REFERENCE.fullmatch(str(reference))
        if found is None or f"{found[1]}.py" not in suitcase_files():
            raise ValueError(
                f"`auto_map` names files of ttreg_hf in its own folder, got {reference!r}. Make the checkpoint again "
                "with `ttreg apply`."
            )
    if not str(fields.get("model_type", "")).endswith("_ttreg"):
        raise ValueError(
            f"{directory} must hold a patched model, got one of type {fields.get('model_type')!r}. Patch it with "
            "`ttreg apply MODEL --output CKPT`."
        )
    config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    assert_patched(config, str(directory))
    return config


def assert_patched(config: Any, name: str) -> None:
    """Refuse the config of a stock model.

    Raises:
        ValueError: it is one.
    """
    if not isinstance(config, TTRegConfigMixin):
        raise ValueError(
            f"{name} must hold a patched model, got one of type {config.model_type!r}. Patch it with "
            "`ttreg apply MODEL --output CKPT`."
        )


def read_calibration(directory: Path) -> CalibrationResult | None:
    """The calibration that lies in a checkpoint folder, if there is one."""
    return CalibrationResult.load(directory) if (directory / JSON_FILE).is_file() else None


def checkpoint_files(directory: str | Path) -> dict[str, Path]:
    """The files of a checkpoint that are published: path in the repository -> file, sorted. Hidden files are not.

    Raises:
        ValueError: a file of a kind that is not published, such as a pickle or foreign code, a link that leaves the
            folder, or a list of shards that does.
    """
    directory = Path(directory)
    files = {}
    for path in _files_below(directory):
        name = path.relative_to(directory).as_posix()
        if path.suffix == ".py":
            allowed = name in suitcase_files()
        else:
            allowed = path.suffix.lower() in _SUFFIXES
        if not allowed:
            raise ValueError(
                "A checkpoint holds safetensors, JSON, images, Markdown and the travelling code of ttreg_hf, got "
                f"{name}. Move it out of {directory}."
            )
        files[name] = path
    if _INDEX in files:
        _check_index(files)
    return dict(sorted(files.items()))


def suitcase_files() -> frozenset[str]:
    """Names of the files of code that may travel with a checkpoint."""
    folder = Path(ttreg_hf.modeling.__file__).parent
    return frozenset(path.name for path in folder.glob("*.py") if path.name != "__init__.py")


def is_weight_file(name: str) -> bool:
    """Whether a file of a checkpoint holds weights, or says which shard holds which."""
    return _WEIGHTS.fullmatch(name) is not None


def is_written_by_us(name: str) -> bool:
    """Whether a file of a repository is one that pushing writes, so that pushing again may take it away."""
    return is_weight_file(name) or name in (BASE_WEIGHTS, JSON_FILE, TENSOR_FILE, EVALUATION_FILE, *suitcase_files())


def pictures_of(names: Iterable[str]) -> list[str]:
    """Paths in the repository of its pictures."""
    return [name for name in names if PurePosixPath(name).suffix.lower() in _PICTURE_SUFFIXES]


def _check_index(files: Mapping[str, Path]) -> None:
    """The list of shards names files of the checkpoint only."""
    shards = set(json.loads(files[_INDEX].read_text(encoding="utf-8"))["weight_map"].values())
    if missing := sorted(shards - set(files)):
        raise ValueError(f"{_INDEX} names files of the checkpoint, got {missing[0]!r}, which is none. Save it again.")


def _files_below(directory: Path) -> Iterator[Path]:
    root = directory.resolve()
    for parent, folders, names in os.walk(directory):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__pycache__")
        for name in [*folders, *names]:
            path = Path(parent, name)
            if path.is_symlink() and not path.resolve().is_relative_to(root):
                raise ValueError(
                    f"Files of a checkpoint lie in its folder, but {path} links to {path.resolve()}. Put a copy in "
                    "its place."
                )
        yield from (Path(parent, name) for name in sorted(names) if not name.startswith("."))


def _write_json(path: Path, fields: dict[str, Any]) -> None:
    path.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
