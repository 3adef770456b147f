"""Finds the register neurons of a model: images in, result out, in one process or in many."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from transformers import PreTrainedModel

from ttreg_hf.calibration.batch_limit import say_nothing
from ttreg_hf.calibration.batches import Batch
from ttreg_hf.calibration.config import CalibrationConfig, GateConfig, RunConfig
from ttreg_hf.calibration.minimal_set import PER_NEURON
from ttreg_hf.calibration.norms import NormReport
from ttreg_hf.calibration.passes import Progress
from ttreg_hf.calibration.result import CalibrationResult
from ttreg_hf.calibration.rounds import Scored, Stages
from ttreg_hf.calibration.selection import rank_neurons
from ttreg_hf.calibration.session import (
    describe_images,
    end_and_bad_images,
    no_scores,
    open_model_and_images,
    provenance_of,
    state_store,
)
from ttreg_hf.calibration.settings import AUTOMATIC, resolved
from ttreg_hf.calibration.verification import CLEAN, UNRESOLVED

_FIXED_POSITIONS = (
    "Some tokens are outliers at the same places in every image: another mechanism, which moving neurons does not "
    "treat."
)
_TOO_FEW_IMAGES = (
    "These neurons take the outliers of the images that chose them away, but not those of others, which other neurons "
    "make: too few images for so many neurons. Give more images (`--num-images`)."
)
_NO_ACTIVE_NEURON = (
    "No neuron between the layers searched is active on the outlier tokens. Search others with `--first-layer` and "
    "`--last-layer`."
)


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
    config = dataclasses.replace(config or CalibrationConfig(), top_k=1)  # so that no image is held back
    run = run or RunConfig()
    model, batches = open_model_and_images(
        model_or_id, images, config, processor, image_column, None, accelerator, run
    )
    inspection = Stages(model, batches, config, progress, say).inspect(most=config.num_images)
    _, bad_images = end_and_bad_images(batches)
    if bad_images:
        say(f"skipped {len(bad_images)} unreadable: {', '.join(bad.key for bad in bad_images.values())}")
    return inspection.report


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
    """Find the register neurons of a model. No setting is needed; every automatic choice is recorded.

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
    model, batches = open_model_and_images(
        model_or_id, images, config, processor, image_column, revision, accelerator, run
    )
    name = images_name or describe_images(images)
    stages = Stages(model, batches, config, progress, say)
    inspection = stages.inspect()
    store = state_store(run, model, batches, name, config)
    scored = None
    if inspection.has_outliers or config.norm_threshold is not None:
        scored = stages.score(inspection, store=store, early_stop=run.early_stop)
    end, bad_images = end_and_bad_images(batches)
    if scored is not None and scored.stopped_at is not None:
        say(f"stopped early after {scored.stopped_at} images: two halves of them agree on the best neurons")
    elif scored is not None and end < config.num_images:
        say(f"asked for {config.num_images} images, the data set had {end}")
    result = CalibrationResult(
        register_neurons=(),
        scores=no_scores(model) if scored is None else scored.scores_LF,
        verdict=CLEAN,
        norms=inspection.report,
        verification=None,
        shift_value=PER_NEURON,
        reasons=(),
        selections=(),
        candidates=(),
        convergence=None if scored is None else scored.convergence,
        config=resolved(config, model, inspection),
        chosen=tuple(setting for setting in AUTOMATIC if getattr(config, setting) is None),
        provenance=provenance_of(
            model,
            batches,
            0 if scored is None else scored.images_scored,
            0 if scored is None else scored.images_with_outliers,
            bad_images,
            name,
            revision,
        ),
        outlier_rule=inspection.rule,
    )
    if scored is not None and scored.images_with_outliers > 0:
        result = _with_neurons(result, stages, scored, gate)
    elif inspection.report.fixed_position_share > 0:
        result = dataclasses.replace(result, verdict=UNRESOLVED, reasons=(_FIXED_POSITIONS,))
    if store is not None and batches.processes.rank == 0:
        store.remove()
    return result


def _with_neurons(result: CalibrationResult, stages: Stages, scored: Scored, gate: GateConfig) -> CalibrationResult:
    """The neurons that are chosen, or asked for, and the verdict on them."""
    search, top_k, left_when_chosen = scored.search, stages.config.top_k, None
    ranked = rank_neurons(
        scored.scores_LF, first_layer=search.first_layer, last_layer=search.last_layer, top_k=top_k or 1
    )
    if not ranked:
        return dataclasses.replace(result, verdict=UNRESOLVED, reasons=(_NO_ACTIVE_NEURON,))
    if top_k is None:
        chosen = stages.select(scored, gate)
        neurons, shift_value = chosen.register_neurons, chosen.shift_value
        left_when_chosen = chosen.outcome.outlier_ratio
        result = dataclasses.replace(result, selections=chosen.selections, candidates=chosen.candidates)
    else:
        neurons, shift_value = stages.processes.share(ranked), PER_NEURON
    found = stages.verify(neurons, search.rule, shift_value=shift_value, gate=gate)
    reasons = [
        f"{check.name} is {check.value:.3g}, allowed is {check.bound:.3g}. {check.remedy}"
        for check in found.checks
        if not check.passed
    ]
    if left_when_chosen is not None and left_when_chosen <= gate.max_outlier_ratio < found.outlier_ratio:
        reasons.append(_TOO_FEW_IMAGES)
    if result.norms.fixed_position_share > 0:
        reasons.append(_FIXED_POSITIONS)
    return dataclasses.replace(
        result,
        register_neurons=neurons,
        verdict=found.verdict,
        verification=found,
        shift_value=shift_value,
        reasons=tuple(reasons),
        config=dataclasses.replace(result.config, top_k=len(neurons)),
    )
