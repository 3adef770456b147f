"""What a calibration runs on, and what is written down of it: model, images, saved states, provenance."""

import dataclasses
import datetime
import importlib.metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ttreg_hf.calibration.batch_size import decode_workers, fit_batch_size
from ttreg_hf.calibration.batches import BadImage, ImageBatches
from ttreg_hf.calibration.config import CalibrationConfig, RunConfig
from ttreg_hf.calibration.images import open_images
from ttreg_hf.calibration.processes import Processes
from ttreg_hf.calibration.recording import Recorder
from ttreg_hf.calibration.result import Provenance
from ttreg_hf.calibration.resuming import StateStore, fingerprint
from ttreg_hf.calibration.settings import checked_layers
from ttreg_hf.families import blocks_of
from ttreg_hf.loading import load_model, load_processor
from ttreg_hf.modeling.ttreg_base import down_projection


def open_model_and_images(
    model_or_id: PreTrainedModel | str | Path,
    images: Any,
    config: CalibrationConfig,
    processor: Any,
    image_column: str | None,
    revision: str | None,
    accelerator: Any,
    run: RunConfig,
) -> tuple[PreTrainedModel, ImageBatches]:
    """The model, and this process's images as batches on its device."""
    processes = Processes.of(accelerator)
    if isinstance(model_or_id, (str, Path)):
        name = str(model_or_id)
        model = load_model(name, revision=revision, device=accelerator.device if accelerator else None)
        processor = processor or load_processor(name, revision=revision)
    else:
        model = model_or_id
    checked_layers(config, model)  # an unsupported model or a wrong layer is refused before any image is read
    batches = ImageBatches(
        open_images(images, image_column=image_column),
        processor,
        num_images=config.num_images,
        batch_size=config.batch_size or 1,
        device=model.device,
        processes=processes,
        workers=decode_workers(model.device, processes.world) if run.workers is None else run.workers,
        max_bad_share=run.max_bad_share,
    )
    if config.batch_size is None:
        batches.batch_size = _fitting_batch_size(model, batches)
    return model, batches


def _fitting_batch_size(model: PreTrainedModel, batches: ImageBatches) -> int:
    probe = next(batches.on_every_process().without_workers().first(1), None)
    if probe is None:
        return 1
    with Recorder(model, range(len(blocks_of(model)))) as recorder:
        return fit_batch_size(recorder, probe.pixel_values)


def end_and_bad_images(batches: ImageBatches) -> tuple[int, dict[int, BadImage]]:
    """One more than the last place that any process read, and the unreadable images of all of them.

    Raises:
        ValueError: more of them than are allowed.
    """
    found = batches.processes.collect([batches.seen])
    bad_images = {place: bad for seen in found for place, bad in seen.bad_images.items()}
    batches.check_bad_images(bad_images)
    return max(seen.end for seen in found), dict(sorted(bad_images.items()))


def state_store(
    run: RunConfig, model: PreTrainedModel, batches: ImageBatches, name: str, config: CalibrationConfig
) -> StateStore | None:
    if run.state_directory is None or not (run.resume or config.num_images > run.save_every):
        return None
    weights = [f"{float(parameter.detach().float().abs().mean()):.5e}" for parameter in model.parameters()]
    first = next(batches.on_every_process().without_workers().first(1), None)
    run_is = {
        **dataclasses.asdict(dataclasses.replace(config, batch_size=None)),
        "model": fingerprint([type(model).__name__, str(model.dtype), str(model.config.to_dict()), weights]),
        "images": fingerprint([name, f"{float(first.pixel_values.mean()):.4e}" if first else None]),
    }
    return StateStore(
        Path(run.state_directory),
        save_every=run.save_every,
        resume=run.resume,
        run=run_is,
        processes=batches.processes,
    )


def describe_images(images: Any) -> str:
    if isinstance(images, (str, Path)):
        return str(images)
    return str(getattr(getattr(images, "info", None), "dataset_name", None) or type(images).__name__)


def provenance_of(
    model: PreTrainedModel,
    batches: ImageBatches,
    images_scored: int,
    images_with_outliers: int,
    bad_images: dict[int, BadImage],
    name: str,
    revision: str | None,
) -> Provenance:
    first = next(batches.on_every_process().without_workers().first(1))
    return Provenance(
        model=str(model.name_or_path),
        revision=revision,
        model_class=type(model).__name__,
        images=name,
        num_images=batches.num_images,
        images_scored=images_scored,
        images_with_outliers=images_with_outliers,
        bad_images=tuple(bad.key for bad in bad_images.values()),
        image_size=(first.pixel_values.shape[-2], first.pixel_values.shape[-1]),
        processes=batches.processes.world,
        dtype=str(model.dtype).removeprefix("torch."),
        versions={package: importlib.metadata.version(package) for package in ("torch", "transformers")},
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    )


def no_scores(model: PreTrainedModel) -> Tensor:
    """`(L, F)` of zeros: none was measured."""
    widths = [down_projection(block).in_features for block in blocks_of(model)]
    return torch.zeros(len(widths), max(widths), dtype=torch.float64)
