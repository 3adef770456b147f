"""Finds the register neurons of a model: images in, result out, in one process or in many."""

import dataclasses
from collections.abc import Collection
from typing import Any

import torch
from transformers import PreTrainedModel

from ttreg_hf.calibration.calibration_result import CalibrationResult
from ttreg_hf.calibration.config import CalibrationConfig, GateConfig, RunConfig
from ttreg_hf.calibration.finding import Finding, find
from ttreg_hf.calibration.inputs import Inputs
from ttreg_hf.calibration.provenance import Provenance, provenance_of
from ttreg_hf.calibration.rounds import RoundScores
from ttreg_hf.calibration.run_state import remove_states
from ttreg_hf.calibration.search import AUTOMATIC, resolved
from ttreg_hf.calibration.stages import Stages
from ttreg_hf.images.batches import BadImage
from ttreg_hf.images.data_sets import NamedImages
from ttreg_hf.images.data_source import DataSource
from ttreg_hf.images.progress import Progress, Say, say_nothing, silent
from ttreg_hf.measuring.norms import NormReport
from ttreg_hf.measuring.position_report import PositionReport


def say_skipped(bad_images: Collection[BadImage], say: Say) -> None:
    """Name the images that could not be read, if there are any."""
    if bad_images:
        say(f"skipped {len(bad_images)} unreadable: {', '.join(bad.key for bad in bad_images)}")


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
    say: Say = say_nothing,
) -> NormReport:
    """Norms of a model's patch tokens, per block. Changes nothing.

    Args:
        model_or_id: a supported transformers model, or its Hub id or path.
        images: a folder, a `datasets` dataset, or an iterable of PIL images, uint8 arrays or float tensors
            `(C, H, W)`, which are used as `pixel_values` as they are; or `NamedImages`.
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
    config = dataclasses.replace(config or CalibrationConfig(), top_k=1)  # so that no image is held back
    named = NamedImages.of(images, image_column)
    inputs = Inputs.open(model_or_id, named, config, processor=processor, accelerator=accelerator, run=run)
    stages = Stages(inputs, progress, say)
    inspection = stages.inspect(most=config.num_images)
    positions = stages.position_report(inspection)
    say_skipped(inputs.batches.read_by_all().bad_images.values(), say)
    return dataclasses.replace(inspection.report, positions=positions)


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
    progress: Progress = silent,
    say: Say = say_nothing,
) -> CalibrationResult:
    """Find the register neurons of a model, and spikes of its position table. Every automatic choice is recorded.

    Four stages: *inspect* the norms of the first images; *score* all neurons between the blocks in which outliers
    begin and arrive; *select* the smallest set that takes them away, by intervention; *verify* it against controls.
    With an automatic `top_k` the images are split by a seeded hash of their place: three quarters score, one eighth
    selects, one eighth verifies and is seen by no other stage. With `top_k` given, all `num_images` score, the verdict
    is `in_sample`, and with all settings given the ranking is the paper's.

    The images are the first `num_images` of one order that does not depend on processes, workers or batch size, and
    neither does the result.

    Args:
        model_or_id: a supported transformers model, or its Hub id or path.
        images: a folder, a `datasets` dataset, or an iterable of PIL images, uint8 arrays or float tensors
            `(C, H, W)`, which are used as `pixel_values` as they are; or `NamedImages`.
        config: the settings; `CalibrationConfig()` by default.
        processor: image processor; found by the id or path if not given.
        accelerator: an `accelerate.Accelerator`, if several processes share the images.
        gate: bounds of the verdict `fixed`.
        run: workers, faults, saved states.
        image_column: column of a dataset, if it has several with images.
        revision: of the model, to load it if an id is given, and for the record.
        progress: shows how far it is.
        say: takes lines for people, such as what was found out about memory.

    Returns:
        The same on every process.

    Raises:
        ValueError: unsupported model, no images, too many unreadable ones, or settings that this model does not allow.
    """
    named, config = NamedImages.of(images, image_column), config or CalibrationConfig()
    inputs = Inputs.open(
        model_or_id, named, config, processor=processor, revision=revision, accelerator=accelerator, run=run
    )
    return run_stages(Stages(inputs, progress, say), named.source, gate=gate, run=run, revision=revision)


def run_stages(
    stages: Stages,
    source: DataSource,
    *,
    gate: GateConfig | None = None,
    run: RunConfig | None = None,
    revision: str | None = None,
) -> CalibrationResult:
    """What `calibrate` does once the model and its images are open; the stages carry the constants.

    Args:
        stages: of the model on its images.
        source: of the images, for the record.
        gate: bounds of the verdict `fixed`.
        run: faults, saved states.
        revision: of the model, for the record.
    """
    gate, run, inputs, config = gate or GateConfig(), run or RunConfig(), stages.inputs, stages.config
    store = inputs.state_store(run, source)
    inspection = stages.inspect()
    positions = stages.position_report(inspection)
    found = find(stages, inspection, positions, gate, store=store, early_stop=run.early_stop)
    inspection, scores = found.inspection, found.scores
    record = inputs.batches.read_by_all()
    _say_how_it_ended(scores, record.end, config, stages.say)
    provenance = provenance_of(
        inputs.tower,
        inputs.batches,
        source=source,
        revision=revision,
        images_scored=scores.images_scored if scores else 0,
        images_with_outliers=scores.images_with_outliers if scores else 0,
        bad_images=inputs.batches.read_by_all().bad_images.values(),  # also of those that verified
    )
    result = _result(stages, found, positions, provenance)
    if store is not None and inputs.batches.processes.rank == 0 and not run.keep_states:
        remove_states(store.directory)
    return result


def _result(stages: Stages, finding: Finding, positions: PositionReport, provenance: Provenance) -> CalibrationResult:
    inspection, scores, tower = finding.inspection, finding.scores, stages.tower
    config = resolved(stages.config, inspection)
    if finding.register_neurons:
        config = dataclasses.replace(config, top_k=len(finding.register_neurons))
    none_scored = torch.zeros(tower.num_layers, max(tower.widths), dtype=torch.float64)
    return CalibrationResult(
        register_neurons=finding.register_neurons,
        scores=none_scored if scores is None else scores.scores_LF,
        verdict=finding.verdict,
        norms=dataclasses.replace(inspection.report, positions=positions.brief),
        verification=finding.verification,
        fixed_positions=finding.fixed_positions,
        shift_value="per_neuron",  # what was chosen and verified
        reasons=finding.reasons,
        selections=finding.choice.selections if finding.choice else (),
        candidates=finding.choice.candidates if finding.choice else (),
        convergence=None if scores is None else scores.convergence,
        config=config,
        chosen=tuple(setting for setting in AUTOMATIC if getattr(stages.config, setting) is None),
        provenance=provenance,
        outlier_rule=inspection.rule,
        looks=finding.looks,
        constant_mode=finding.constant_mode,
        constants=finding.constants,
    )


def _say_how_it_ended(scores: RoundScores | None, end: int, config: CalibrationConfig, say: Say) -> None:
    if scores is not None and scores.stopped_at is not None:
        say(f"stopped early after {scores.stopped_at} images: two halves of them agree on the best neurons")
    elif scores is not None and end < config.num_images:
        say(f"asked for {config.num_images} images, the data set had {end}")
