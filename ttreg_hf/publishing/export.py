"""Exports a patched model for another runtime: handed over only where it gives what torch gives."""

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ttreg_hf.calibration.calibration_result import CalibrationResult
from ttreg_hf.calibration.config import CalibrationConfig, GateConfig
from ttreg_hf.calibration.gate import GateCheck
from ttreg_hf.calibration.verdict import MIN_WITH_OUTLIERS
from ttreg_hf.calibration.verification_run import base_of_patched, twin_checks
from ttreg_hf.images.batches import ImageBatches
from ttreg_hf.images.data_sets import NamedImages
from ttreg_hf.images.image_source import open_images
from ttreg_hf.images.photographs import load_photographs
from ttreg_hf.measuring.tower import VisionTower
from ttreg_hf.modeling.modeling_ttreg import TTRegModelMixin
from ttreg_hf.publishing.export_format import ONNX, ExportFormat, format_called
from ttreg_hf.publishing.export_parity import Parity, parity, rows
from ttreg_hf.publishing.export_program import Inputs, open_program, write_program
from ttreg_hf.publishing.folded_neurons import fold_neurons
from ttreg_hf.publishing.output_check import float32_twin
from ttreg_hf.publishing.privacy import hide_local_names
from ttreg_hf.writing import check_space, whole_directory, write_file

PARITY_FILE = "parity.json"
_ALL = 64  # photographs, and more than are bundled


class ParityError(RuntimeError):
    """The exported program does not give what the model gives; nothing was written."""


class FoldingError(ValueError):
    """Folding the neurons does not keep the bounds of the gate; nothing was written."""


@dataclass(frozen=True)
class Export:
    """What was exported.

    Args:
        export_format: its name.
        part: class of what was exported: the model, or the vision tower of one that reads text too.
        size: bytes of the program.
        model_size: bytes of the weights in float32.
        num_calibration_images: that the scales of int8 activations were measured on; 0 in float32.
        parity: the program beside torch.
        folding: what was measured of the folded neurons; empty where they are not folded.
    """

    export_format: str
    part: str
    size: int
    model_size: int
    num_calibration_images: int
    parity: Parity
    folding: tuple[GateCheck, ...] = ()


@dataclass(frozen=True)
class Folding:
    """On what folding is judged.

    Args:
        images: as `calibrate` takes them.
        calibration: says which tokens are outliers; without it the base model is inspected.
        gate: bounds.
    """

    images: Any
    calibration: CalibrationResult | None = None
    gate: GateConfig = field(default_factory=GateConfig)


def export_model(
    model: PreTrainedModel,
    directory: str | Path,
    *,
    export_format: str = ONNX,
    processor: Any,
    calibration_images: Any = None,
    num_images: int = 64,
    fold: Folding | None = None,
    overwrite: bool = False,
) -> Export:
    """Export a patched model through transformers' exporters, and compare it with torch on the bundled photographs.

    The folder holds the program for batches of any size, config, processor and `parity.json`. It appears whole, or, if
    the program gives other outputs, not at all.

    Args:
        model: patched; stays as it is. Of one that reads text too its vision tower is exported.
        directory: the folder.
        export_format: `"onnx"`, `"openvino"` or `"executorch"`.
        processor: image processor of the model.
        calibration_images: as `calibrate` takes them: the program computes in int8, with static scales measured on
            them. `None`: float32.
        num_images: of those, at most.
        fold: write the neurons' zeros into the weights, if these images show that this keeps the bounds of the gate.
        overwrite: replace a folder that is there.

    Raises:
        TypeError: a model that is not patched.
        ImportError: packages of the format are missing.
        ValueError: no such format, int8 where it is not offered, or no processor.
        FoldingError: folding does not keep the bounds.
        ParityError: the program gives other outputs than the model.
        FileExistsError: the folder exists and is not empty.
    """
    chosen, int8 = format_called(export_format), calibration_images is not None
    chosen.check(int8=int8)
    _check_exportable(model, processor)
    twin, checks = float32_twin(model), ()
    if fold is not None:
        twin, checks = _folded(twin, processor, fold, num_images)
    part = exported_part(twin)
    with whole_directory(directory, overwrite=overwrite) as folder:
        check_space(folder, 2 * model.num_parameters() * 4)
        photographs = next(iter(_inputs(twin, processor, load_photographs(), batch_size=_ALL)))
        scaled_by = list(_inputs(twin, processor, calibration_images, num_images)) if int8 else []
        write_program(part, rows(photographs, 2), chosen, folder, scaled_by)
        size = sum(path.stat().st_size for path in folder.iterdir())
        found = _compared(part, folder, chosen, photographs, int8=int8)
        processor.save_pretrained(folder)
        hide_local_names(folder)
        footprint = sum(4 * parameter.numel() for parameter in part.parameters())
        exported = Export(chosen.name, type(part).__name__, size, footprint, len(scaled_by), found, checks)
        write_file(folder / PARITY_FILE, f"{json.dumps(dataclasses.asdict(exported), indent=2)}\n".encode())
    return exported


def exported_part(model: Any) -> Any:
    """The model where images are all that it reads, else its vision tower."""
    return VisionTower.of(model).trunk if "text" in model.input_modalities else model


def _compared(part: Any, folder: Path, chosen: ExportFormat, photographs: Inputs, *, int8: bool) -> Parity:
    found = parity(part, open_program(folder, chosen), photographs, int8=int8)
    if found.failed:
        raise ParityError(
            f"An exported program gives what torch gives, but on {found.num_images} photographs this {chosen.name} "
            f"program differs in {'; '.join(found.failed)}. Nothing was written. "
            + ("Give more `--dataset` images, or export in float32." if int8 else "Please report it with `ttreg env`.")
        )
    return found


def _folded(twin: Any, processor: Any, fold: Folding, num_images: int) -> tuple[Any, tuple[GateCheck, ...]]:
    folded = fold_neurons(twin)
    intervention = base_of_patched(
        twin,
        NamedImages.of(fold.images),
        calibration=fold.calibration,
        config=CalibrationConfig(num_images=num_images),
        processor=processor,
    )
    checks = twin_checks(intervention, folded, fold.gate)
    count = intervention.num_photographs_with_outliers
    if count < MIN_WITH_OUTLIERS or not all(check.passed for check in checks):
        figures = "; ".join(f"{check.name} {check.judged:.3g} (allowed {check.bound:.3g})" for check in checks)
        raise FoldingError(
            "Folded neurons are gone from the prefix tokens too, which has to keep the bounds of the gate on "
            f"{MIN_WITH_OUTLIERS} photographs with outliers or more, got {count}: "
            f"{figures}. Nothing was written. Give other `--dataset` images, or export without `--fold`."
        )
    return folded, checks


def _check_exportable(model: PreTrainedModel, processor: Any) -> None:
    if not isinstance(model, TTRegModelMixin):
        raise TypeError(
            f"`ttreg export` takes a patched model, got {type(model).__name__}. Patch it with `ttreg apply MODEL "
            "--output CKPT`; a stock model is exported by `transformers.exporters` itself."
        )
    if processor is None:
        raise ValueError(
            "An exported program is compared with torch on photographs, for which the checkpoint's image processor is "
            "needed, but it has none. Save one beside it: `processor.save_pretrained(CKPT)`."
        )


def _inputs(
    twin: Any, processor: Any, images: Any, num_images: int = _ALL, *, batch_size: int = 1
) -> Iterable[Inputs]:
    """What the exported part takes, for images in batches."""
    tower, named = VisionTower.of(twin), NamedImages.of(images)
    batches = ImageBatches(
        open_images(named.images, image_column=named.image_column),
        processor,
        num_images=num_images,
        batch_size=batch_size,
        device=twin.device,
        channels=tower.num_channels,
    )
    for batch in batches:
        yield tower.inputs(batch.pixel_values)
