"""The checkpoint folder: writes a patched model so that anyone can load it."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ttreg_hf.applying import add_test_time_registers, published_register_neurons
from ttreg_hf.calibration.calibration_result import JSON_FILE, CalibrationResult
from ttreg_hf.calibration.verdict import FIXED
from ttreg_hf.images.photographs import photographs_to_picture
from ttreg_hf.loading import ModelSource
from ttreg_hf.measuring.tower import VisionTower
from ttreg_hf.modeling.modeling_ttreg import TTRegModelMixin
from ttreg_hf.pictures.picture_files import write_before_after
from ttreg_hf.publishing.card import model_card
from ttreg_hf.publishing.checkpoint_config import read_config
from ttreg_hf.publishing.output_check import expected_outputs
from ttreg_hf.publishing.privacy import (
    calibration_without_local_names,
    hide_local_names,
    picture_without_metadata,
    public_title,
)
from ttreg_hf.publishing.published_files import CARD, EXPECTED_OUTPUTS, PICTURES, checkpoint_files, pictures_of
from ttreg_hf.writing import check_space, whole_directory, write_file


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
    patched = _patched_model(model)
    with whole_directory(directory, overwrite=overwrite) as folder:
        for picture in map(Path, pictures):
            (folder / PICTURES).mkdir(exist_ok=True)
            write_file(folder / PICTURES / picture.name, picture_without_metadata(picture))
        _fill(folder, patched, processor=processor, calibration=calibration, max_shard_size=max_shard_size)
    return Path(directory)


def make_checkpoint(
    source: ModelSource,
    directory: str | Path,
    *,
    calibration: CalibrationResult | None = None,
    mode: str = "token",
    force: bool = False,
    overwrite: bool = False,
) -> TTRegModelMixin:
    """Load a base model, patch it, and write what `ttreg apply` leaves: a complete checkpoint folder with pictures.

    Args:
        source: of the base model.
        directory: the checkpoint folder.
        calibration: says which neurons; without it the published ones are taken.
        mode: `"token"`, or `"constant"`, which needs a calibration that measured it.
        force: patch whatever the verdict is, and whatever weights it is of.
        overwrite: replace a folder that is there.

    Returns:
        The patched model that was written.

    Raises:
        FileExistsError: the folder exists and is not empty.
        ValueError: no neurons are published, or a model that cannot be patched.
        VerdictError: the calibration is `clean` or `unresolved`, or of other weights, and `force` is not set.
    """
    if calibration is None:
        published_register_neurons(source.name_or_path)  # an error before the model is loaded, if there are none
    else:
        check_verdict(calibration, force=force, mode=mode)
    with whole_directory(directory, overwrite=overwrite) as folder:
        model, processor = source.model(), source.processor()
        check_space(folder, model.get_memory_footprint())
        neurons: Any = calibration
        options: dict[str, Any] = {}
        if calibration is not None:
            check_verdict(found := calibration.beside(model), force=force, mode=mode)
            if found.on_other_weights:
                neurons = found.register_neurons
                options = {"shift_value": found.shift_value, "fixed_positions": found.fixed_positions}
        patched = add_test_time_registers(
            model, neurons, **options, test_time_register_mode=mode, base_model_revision=source.commit()
        )
        if processor is not None:
            write_before_after(
                model,
                patched,
                photographs_to_picture(),
                processor,
                folder / PICTURES,
                detection_layer=_detection_layer(model, calibration),
                norm_threshold=calibration.norms.norm_threshold if calibration else None,
                caption=f"{public_title(source.name_or_path, model)}, before and after",
            )
        _fill(folder, patched, processor=source.whole_processor(model), calibration=calibration)
    return patched


def _fill(
    folder: Path,
    model: TTRegModelMixin,
    *,
    processor: Any,
    calibration: CalibrationResult | None,
    max_shard_size: int | str = "50GB",
) -> None:
    """Write all but the pictures, which are there."""
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    if processor is not None:
        processor.save_pretrained(folder)
    if calibration is not None:
        calibration = calibration_without_local_names(calibration.beside(model))
        calibration.save(folder)
    write_file(folder / EXPECTED_OUTPUTS, _json(expected_outputs(model)))
    hide_local_names(folder)
    card = model_card(read_config(folder), calibration, pictures=pictures_of(checkpoint_files(folder)))
    write_file(folder / CARD, str(card).encode())


def _detection_layer(model: PreTrainedModel, calibration: CalibrationResult | None) -> int:
    return VisionTower.of(model).default_detection_layer if calibration is None else calibration.norms.detection_layer


def _patched_model(model: PreTrainedModel) -> TTRegModelMixin:
    if not isinstance(model, TTRegModelMixin):
        raise TypeError(
            f"A checkpoint is made of a patched model, got {type(model).__name__}. "
            "Use `add_test_time_registers(model, register_neurons)` first."
        )
    return model


def check_verdict(calibration: CalibrationResult, *, force: bool, mode: str = "token") -> None:
    """Refuse to make or publish a patched model that is not known to be better than its base model.

    Raises:
        VerdictError: the verdict is `clean` or `unresolved`, or was found on other weights, or constant mode is asked
            for and does not keep the bounds, and `force` is not set.
    """
    if force:
        return
    if mode == "constant" and calibration.constant_mode is not None and not calibration.constant_mode.passed:
        raise VerdictError(
            f"Constant mode does not keep its bounds here: {' '.join(calibration.constant_mode.reasons)} Take token "
            "mode (`--mode token`); `--force` (`force=True`) goes on all the same."
        )
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


def read_calibration(directory: Path) -> CalibrationResult | None:
    """The calibration that lies in a checkpoint folder, if there is one."""
    return CalibrationResult.load(directory) if (directory / JSON_FILE).is_file() else None


def _json(fields: dict[str, Any]) -> bytes:
    return (json.dumps(fields, indent=2) + "\n").encode()
