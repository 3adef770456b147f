"""Verifies a checkpoint that is patched already: does moving its neurons still help, on these images?"""

import dataclasses
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from ttreg_hf.applying import add_test_time_registers, moving_of
from ttreg_hf.calibration.calibration_result import CalibrationResult
from ttreg_hf.calibration.calibration_run import say_skipped
from ttreg_hf.calibration.comparison import compare
from ttreg_hf.calibration.config import CalibrationConfig, GateConfig, RunConfig
from ttreg_hf.calibration.gate import GateCheck, absolute_drift_checks, outlier_check
from ttreg_hf.calibration.inputs import Inputs
from ttreg_hf.calibration.stages import Stages
from ttreg_hf.calibration.verdict import CLEAN, MIN_CLEAN, UNRESOLVED, headline, too_few_for_clean
from ttreg_hf.calibration.verification import Verification, verify
from ttreg_hf.images.data_sets import NamedImages
from ttreg_hf.images.progress import Progress, Say, say_nothing, silent
from ttreg_hf.measuring.feature_drift import Seen, feature_drifts
from ttreg_hf.measuring.intervention import Intervention
from ttreg_hf.measuring.outlier_rule import OutlierRule
from ttreg_hf.measuring.perturbations import PixelScale
from ttreg_hf.measuring.tower import VisionTower
from ttreg_hf.modeling.modeling_ttreg import TTRegModelMixin
from ttreg_hf.register_neuron import RegisterNeuron


@dataclass(frozen=True)
class CheckpointVerification:
    """What a patched checkpoint does on some images.

    Args:
        num_photographs: that were looked at: crops and copies count once.
        detection_layer: block where outliers were detected.
        norm_threshold: norm above which a patch counted as one.
        verification: base against the neurons moved to a token; `None` where the base model has no outliers on these
            images.
        constant_checks: conditions of a checkpoint in constant mode, on the same images; none of others.
    """

    num_photographs: int
    detection_layer: int
    norm_threshold: float
    verification: Verification | None
    constant_checks: tuple[GateCheck, ...] = ()

    @property
    def verdict(self) -> str:
        """`"clean"`: nothing could be shown, because the base model has no outliers on these images."""
        if self.reasons:
            return UNRESOLVED
        return CLEAN if self.verification is None else self.verification.verdict

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it is neither `fixed` nor `clean`."""
        if self.verification is not None:
            failed = (f"In constant mode: {check.reason}" for check in self.constant_checks if not check.passed)
            return (*self.verification.reasons(self.num_photographs), *failed)
        return () if self.num_photographs >= MIN_CLEAN else (too_few_for_clean(self.num_photographs),)

    @property
    def headline(self) -> str:
        """The verdict, such as `fixed` or `unresolved: too few images`."""
        return headline(self.verdict, self.reasons)


def verify_patched(
    model: PreTrainedModel,
    images: Any,
    *,
    calibration: CalibrationResult | None = None,
    config: CalibrationConfig | None = None,
    processor: Any = None,
    gate: GateConfig | None = None,
    run: RunConfig | None = None,
    image_column: str | None = None,
    in_sample: bool = False,
    progress: Progress = silent,
    say: Say = say_nothing,
) -> CheckpointVerification:
    """Verify a patched model against itself without its test-time registers. Writes nothing.

    Args:
        model: patched, with its neurons and options.
        images: as `calibrate` takes them.
        calibration: says which tokens are outliers; without it the base model is inspected.
        config: `num_images`, `batch_size`, `seed`, and what overrides the calibration: `norm_threshold`,
            `detection_layer`.
        processor: image processor; not needed for float tensors.
        gate: bounds of the verdict `fixed`.
        run: workers and faults.
        image_column: column of a dataset, if it has several with images.
        in_sample: whether the neurons were found on these images.
        progress: shows how far it is.
        say: takes lines for people.

    Raises:
        ValueError: a model that is not patched or has no neurons, or no readable images.
    """
    config = config or CalibrationConfig()
    intervention = base_of_patched(
        model,
        NamedImages.of(images, image_column),
        calibration=calibration,
        config=config,
        processor=processor,
        run=run,
        progress=progress,
        say=say,
    )
    rule, verification = intervention.rule, None
    if intervention.has_outliers:
        neurons = [RegisterNeuron(layer, neuron, float("nan")) for layer, neuron in model.config.register_neurons]
        verification = verify(
            intervention,
            neurons,
            shift_value=model.config.shift_value,
            in_sample=in_sample,
            gate=gate or GateConfig(),
            pixel_scale=PixelScale.of(processor),
            seed=config.seed,
        )
    checks = ()
    if verification is not None and model.config.test_time_register_mode == "constant":
        checks = twin_checks(intervention, model, gate or GateConfig())
    count = intervention.before.num_photographs
    return CheckpointVerification(count, rule.detection_layer, rule.norm_threshold, verification, checks)


def base_of_patched(
    model: PreTrainedModel,
    images: NamedImages,
    *,
    calibration: CalibrationResult | None,
    config: CalibrationConfig,
    processor: Any,
    run: RunConfig | None = None,
    progress: Progress = silent,
    say: Say = say_nothing,
) -> Intervention:
    """A patched model's own base model on some images, and any twin beside it; arguments as in `verify_patched`.

    Raises:
        ValueError: a model that is not patched or has no neurons, or no readable images.
    """
    if not isinstance(model, TTRegModelMixin) or not model.registers.active:
        raise ValueError(
            f"Only a patched model with register neurons can be verified, got {type(model).__name__} without. Patch "
            "it with `ttreg apply MODEL --output CKPT`."
        )
    inputs = Inputs.open(
        add_test_time_registers(model, []),  # without neurons it is the base model, bit for bit
        images,
        dataclasses.replace(config, top_k=len(model.config.register_neurons) or 1),
        processor=processor,
        run=run,
    )
    stages, batches = Stages(inputs, progress, say), inputs.batches
    rule = dataclasses.replace(_rule(stages, calibration), counts_fixed=bool(model.config.fixed_positions))
    shown = progress("verify", batches, batches.num_images)
    intervention = Intervention(inputs.tower, shown, rule, stages.limit, moving_of(model), inputs.photograph_of)
    say_skipped(batches.read_by_all().bad_images.values(), say)
    return intervention


def twin_checks(intervention: Intervention, twin: PreTrainedModel, gate: GateConfig) -> tuple[GateCheck, ...]:
    """The absolute conditions of the gate for any twin of a base model: outliers, drift of features and of patches."""
    tower = VisionTower.to_measure(twin)
    found = compare(intervention.before, intervention.measure(tower))
    seen = {"twin": Seen(tower)}
    drifts = feature_drifts(intervention.tower, seen, intervention.batches, intervention.before, intervention.limit)
    return (outlier_check(found, gate), *absolute_drift_checks(drifts["twin"], gate))


def _rule(stages: Stages, calibration: CalibrationResult | None) -> OutlierRule:
    """The calibration's where nothing else is given."""
    config = stages.config
    is_given = config.norm_threshold is not None or config.detection_layer is not None
    if calibration is None or calibration.on_other_weights or is_given:
        return stages.inspect().rule
    return calibration.outlier_rule
