"""The fourth stage on a checkpoint that is patched already: does moving its neurons still help, on these images?"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from ttreg_hf.applying import add_test_time_registers
from ttreg_hf.calibration.batch_limit import say_nothing
from ttreg_hf.calibration.config import CalibrationConfig, GateConfig, RunConfig
from ttreg_hf.calibration.driver import silent
from ttreg_hf.calibration.outliers import OutlierRule
from ttreg_hf.calibration.passes import Progress
from ttreg_hf.calibration.result import CalibrationResult
from ttreg_hf.calibration.rounds import Stages
from ttreg_hf.calibration.session import end_and_bad_images, open_model_and_images
from ttreg_hf.calibration.trial import Trial
from ttreg_hf.calibration.verification import CLEAN, Verification, verify
from ttreg_hf.modeling.ttreg_base import TTRegModelMixin
from ttreg_hf.register_neuron import RegisterNeuron

_OPTIONS = ("num_test_time_registers", "shift_fill", "shift_scale")


@dataclass(frozen=True)
class Recheck:
    """What a patched checkpoint does on some images.

    Args:
        detection_layer: block that outliers were told by.
        norm_threshold: norm above which a patch counted as one.
        verification: base against patched; `None` where the base model has no outliers on these images.
    """

    detection_layer: int
    norm_threshold: float
    verification: Verification | None

    @property
    def verdict(self) -> str:
        """`"clean"`: nothing could be shown, because the base model has no outliers on these images."""
        return CLEAN if self.verification is None else self.verification.verdict


def recheck(
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
    say: Callable[[str], None] = say_nothing,
) -> Recheck:
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
    if not isinstance(model, TTRegModelMixin) or not model.registers.active:
        raise ValueError(
            f"Only a patched model with register neurons can be verified, got {type(model).__name__} without. Patch "
            "it with `ttreg apply MODEL --output CKPT`."
        )
    config = dataclasses.replace(config or CalibrationConfig(), top_k=len(model.config.register_neurons))
    base = add_test_time_registers(model, [])  # without neurons it is the base model, bit for bit
    base, batches = open_model_and_images(
        base, images, config, processor, image_column, None, None, run or RunConfig()
    )
    stages = Stages(base, batches, config, progress, say)
    rule = _rule(stages, calibration)
    _, bad_images = end_and_bad_images(batches)
    if bad_images:
        say(f"skipped {len(bad_images)} unreadable: {', '.join(bad.key for bad in bad_images.values())}")
    options = {name: getattr(model.config, name) for name in _OPTIONS}
    trial = Trial(base, progress("verify", batches, batches.num_images), rule, stages.limit, options)
    verification = None
    if trial.has_outliers:
        neurons = [RegisterNeuron(layer, neuron, float("nan")) for layer, neuron in model.config.register_neurons]
        verification = verify(
            trial,
            neurons,
            shift_value=model.config.shift_value,
            in_sample=in_sample,
            gate=gate or GateConfig(),
            seed=config.seed,
        )
    return Recheck(rule.detection_layer, rule.norm_threshold, verification)


def _rule(stages: Stages, calibration: CalibrationResult | None) -> OutlierRule:
    """The calibration's where nothing else is given; files of earlier versions lack its exceptions: found again."""
    config = stages.config
    if calibration is None or config.norm_threshold is not None or config.detection_layer is not None:
        return stages.inspect().rule
    if calibration.outlier_rule is not None:
        return calibration.outlier_rule
    norms = calibration.norms
    rule = OutlierRule(norms.detection_layer, norms.norm_threshold, calibration.config.detect_on_prefix)
    if norms.fixed_position_share == 0 and norms.content_share == 0:
        return rule
    found = stages.inspect().rule
    return dataclasses.replace(rule, fixed_positions=found.fixed_positions, content=found.content)
