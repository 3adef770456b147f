"""Finds the register neurons of a model: images in, result out. All stages, in one process or in many."""

import dataclasses
import datetime
import importlib.metadata
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ttreg_hf.calibration.batch_limit import BatchLimit, say_nothing
from ttreg_hf.calibration.batch_size import decode_workers, fit_batch_size
from ttreg_hf.calibration.batches import BadImage, Batch, ImageBatches
from ttreg_hf.calibration.config import CalibrationConfig, GateConfig, RunConfig
from ttreg_hf.calibration.images import open_images
from ttreg_hf.calibration.norms import NormReport
from ttreg_hf.calibration.passes import Progress, ScorePass, norm_pass
from ttreg_hf.calibration.processes import Processes
from ttreg_hf.calibration.recording import Recorder
from ttreg_hf.calibration.result import CalibrationResult, Provenance
from ttreg_hf.calibration.resuming import StateStore, fingerprint
from ttreg_hf.calibration.scores import ScoreStatistics
from ttreg_hf.calibration.selection import rank_neurons
from ttreg_hf.calibration.settings import AUTOMATIC, Search, is_held_out, report_norms, resolve_layers, search_of
from ttreg_hf.calibration.trial import Trial
from ttreg_hf.calibration.verification import CLEAN, verdict_of
from ttreg_hf.families import blocks_of
from ttreg_hf.loading import load_model, load_processor

_MOST_NEURONS = 1024  # that are tried for an automatic `top_k`
_MOST_IMAGES_TO_INSPECT = 128
_MOST_IMAGES_TO_VERIFY = 64


def silent(stage: str, batches: Iterable[Batch], num_images: int) -> Iterable[Batch]:
    """Shows no progress."""
    return batches


def inspect_norms(
    model_or_id: PreTrainedModel | str,
    images: Any,
    *,
    config: CalibrationConfig | None = None,
    processor: Any = None,
    accelerator: Any = None,
    run: RunConfig | None = None,
    image_column: str | None = None,
    progress: Progress = silent,
    say: Callable[[str], None] = say_nothing,
) -> NormReport:
    """Norms of a model's patch tokens, per block. Changes nothing.

    Args:
        model_or_id: a supported transformers model, or its Hub id or path.
        images: a folder, a `datasets` dataset, or an iterable of PIL images, uint8 arrays or float tensors
            `(3, H, W)`, which are used as `pixel_values` as they are.
        config: `num_images`, `batch_size`, `detection_layer` and `norm_threshold` are used.
        processor: image processor; found by the id or path if not given.
        accelerator: an `accelerate.Accelerator`, if several processes share the images.
        run: workers and faults.
        image_column: column of a dataset, if it has several with images.
        progress: shows how far it is.
        say: takes lines for people, such as which images were unreadable.

    Raises:
        ValueError: unsupported model, no images, or too many unreadable ones.
    """
    config = config or CalibrationConfig()
    model, batches = _open(model_or_id, images, config, processor, image_column, None, accelerator, run or RunConfig())
    norms = _inspect(model, batches, config, BatchLimit(say), progress)
    _, bad_images = _found(batches)
    if bad_images:
        say(f"skipped {len(bad_images)} unreadable: {', '.join(bad.key for bad in bad_images.values())}")
    return norms


def calibrate(
    model_or_id: PreTrainedModel | str,
    images: Any,
    *,
    config: CalibrationConfig | None = None,
    processor: Any = None,
    accelerator: Any = None,
    gate: GateConfig | None = None,
    run: RunConfig | None = None,
    image_column: str | None = None,
    revision: str | None = None,
    images_name: str | None = None,
    progress: Progress = silent,
    say: Callable[[str], None] = say_nothing,
) -> CalibrationResult:
    """Find the register neurons of a model.

    With `top_k` given, all `num_images` score, and with all settings given the ranking is the paper's. A setting left
    at `None` follows the paper's guidance (A.4); for an automatic `top_k` the images are split by a seeded hash of
    their place: three quarters score, one quarter is held out to choose it. The verdict is `in_sample`: it rests on
    images that were used for choosing.

    The images are the first `num_images` of one order that does not depend on processes, workers or batch size, and
    neither does the result.

    Args:
        model_or_id: a supported transformers model, or its Hub id or path.
        images: a folder, a `datasets` dataset, or an iterable of PIL images, uint8 arrays or float tensors
            `(3, H, W)`, which are used as `pixel_values` as they are.
        config: the settings; `CalibrationConfig()` by default.
        processor: image processor; found by the id or path if not given.
        accelerator: an `accelerate.Accelerator`, if several processes share the images.
        gate: bounds of the verdict `fixed`.
        run: workers, faults, saved states.
        image_column: column of a dataset, if it has several with images.
        revision: of the model, to load it if an id is given, and for the record.
        images_name: what the images are, for the record.
        progress: shows how far it is.
        say: takes lines for people, such as what was found out about memory.

    Returns:
        The same on every process.

    Raises:
        ValueError: unsupported model, no images, too many unreadable ones, or settings that this model does not allow.
    """
    config, gate, run = config or CalibrationConfig(), gate or GateConfig(), run or RunConfig()
    model, batches = _open(model_or_id, images, config, processor, image_column, revision, accelerator, run)
    processes, name = batches.processes, images_name or _describe(images)
    limit = BatchLimit(say)
    norms = _inspect(model, batches.up_to(_MOST_IMAGES_TO_INSPECT), config, limit, progress)
    search = search_of(config, model, norms)

    held_out = batches.where(lambda place: is_held_out(place, config.seed))
    scoring = batches.where(lambda place: not is_held_out(place, config.seed))
    both = held_out.on_every_process().holds_any() and scoring.on_every_process().holds_any()
    split = config.top_k is None and both
    store = _store(run, model, batches, name, config)
    scorer = ScorePass(model, search, config, processes, say, limit)
    snapshots = scorer.run(scoring if split else batches, progress, store=store, early_stop=run.early_stop)
    scores = list(snapshots.values())[-1]
    end, bad_images = _found(batches)
    if scorer.stopped_at is not None:
        say(f"stopped early after {scorer.stopped_at} images: two halves of them agree on the best neurons")
    elif end < config.num_images:
        say(f"asked for {config.num_images} images, the data set had {end}")
    result = CalibrationResult(
        register_neurons=(),
        scores=scores.scores().cpu(),
        verdict=CLEAN,
        norms=norms,
        verification=None,
        convergence=scorer.convergence(snapshots),
        config=dataclasses.replace(config, **dataclasses.asdict(search)),
        chosen=tuple(setting for setting in AUTOMATIC if getattr(config, setting) is None),
        provenance=_provenance(model, batches, scores, bad_images, name, revision),
    )
    if scores.images_with_outliers > 0:
        ranked = rank_neurons(
            result.scores,
            first_layer=search.first_layer,
            last_layer=search.last_layer,
            top_k=config.top_k or _MOST_NEURONS,
        )
        # every process measures the same few images, so that none has to wait for another
        trial = _trial(model, (held_out if split else batches).on_every_process(), search, limit, progress)
        if split and trial.before.outlier_fraction == 0:  # too few images held out to show anything
            trial = _trial(model, batches.on_every_process(), search, limit, progress)
        neurons = processes.share(ranked if config.top_k else ranked[: trial.enough(ranked)])
        verification = trial.verify(neurons, in_sample=True)
        result = dataclasses.replace(
            result,
            register_neurons=neurons,
            verdict=verdict_of(verification, gate),
            verification=verification,
            config=dataclasses.replace(result.config, top_k=len(neurons)),
        )
    if store is not None and processes.rank == 0:
        store.remove()
    return result


def _open(
    model_or_id: PreTrainedModel | str,
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
        model_or_id = str(model_or_id)
        model = load_model(model_or_id, revision=revision, device=accelerator.device if accelerator else None)
        processor = processor or load_processor(model_or_id, revision=revision)
    else:
        model = model_or_id
    resolve_layers(config, model)  # an unsupported model or a wrong layer is refused before any image is read
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
        batches.batch_size = _fitting(model, batches)
    return model, batches


def _fitting(model: PreTrainedModel, batches: ImageBatches) -> int:
    probe = next(batches.on_every_process().without_workers().first(1), None)
    if probe is None:
        return 1
    with Recorder(model, range(len(blocks_of(model)))) as recorder:
        return fit_batch_size(recorder, probe.pixel_values)


def _inspect(
    model: PreTrainedModel, batches: ImageBatches, config: CalibrationConfig, limit: BatchLimit, progress: Progress
) -> NormReport:
    statistics = norm_pass(model, progress("inspect", batches, batches.num_images), batches.processes, limit)
    if statistics.num_images == 0:
        _, bad_images = _found(batches)
        unreadable = "".join(f" {bad.reason}." for bad in bad_images.values())
        raise ValueError(
            f"Calibration needs at least one readable image, got none. Check the data set or folder.{unreadable}"
        )
    return report_norms(config, model, statistics)


def _found(batches: ImageBatches) -> tuple[int, dict[int, BadImage]]:
    """One more than the last place that any process read, and the unreadable images of all of them.

    Raises:
        ValueError: more of them than are allowed.
    """
    found = batches.processes.collect([batches.seen])
    bad_images = {place: bad for seen in found for place, bad in seen.bad_images.items()}
    batches.check_bad_images(bad_images)
    return max(seen.end for seen in found), dict(sorted(bad_images.items()))


def _store(
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


def _trial(
    model: PreTrainedModel, batches: ImageBatches, search: Search, limit: BatchLimit, progress: Progress
) -> Trial:
    shown = progress("verify", batches.first(_MOST_IMAGES_TO_VERIFY), min(batches.num_images, _MOST_IMAGES_TO_VERIFY))
    return Trial(
        model,
        list(shown),
        detection_layer=search.detection_layer,
        norm_threshold=search.norm_threshold,
        limit=limit,
    )


def _describe(images: Any) -> str:
    if isinstance(images, (str, Path)):
        return str(images)
    return str(getattr(getattr(images, "info", None), "dataset_name", None) or type(images).__name__)


def _provenance(
    model: PreTrainedModel,
    batches: ImageBatches,
    scores: ScoreStatistics,
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
        images_scored=scores.images_seen,
        images_with_outliers=scores.images_with_outliers,
        bad_images=tuple(bad.key for bad in bad_images.values()),
        image_size=(first.pixel_values.shape[-2], first.pixel_values.shape[-1]),
        processes=batches.processes.world,
        dtype=str(model.dtype).removeprefix("torch."),
        versions={package: importlib.metadata.version(package) for package in ("torch", "transformers")},
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    )
