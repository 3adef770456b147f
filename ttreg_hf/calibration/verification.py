"""Fourth stage: does moving these neurons take the outliers away, leave the features alone, and beat the controls?

Letters: `L` blocks, `B` images.
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from ttreg_hf.calibration.attention import MapChanges, map_changes
from ttreg_hf.calibration.config import GateConfig
from ttreg_hf.calibration.controls import Controls, NeuronEffect, neuron_effects, run_controls
from ttreg_hf.calibration.intervals import interval_of_mean, interval_of_ratio
from ttreg_hf.calibration.later_blocks import later_outlier_fractions
from ttreg_hf.calibration.measuring import Measured
from ttreg_hf.calibration.processes import Processes
from ttreg_hf.calibration.trial import Trial
from ttreg_hf.families import blocks_of
from ttreg_hf.modeling.ttreg_base import down_projection
from ttreg_hf.register_neuron import RegisterNeuron

_FEW_IMAGES = 16  # with outliers; what needs a pass for each of many sets is measured on these

FIXED, CLEAN, UNRESOLVED = "fixed", "clean", "unresolved"
MEANING = {
    FIXED: "register neurons found, and moving them works",
    CLEAN: "no outlier tokens were seen: nothing to do",
    UNRESOLVED: "outliers stay, or the features drift too far: do not patch with these neurons",
}


@dataclass(frozen=True)
class GateCheck:
    """One condition of the verdict `fixed`.

    Args:
        name: what was measured.
        value: the measurement.
        bound: it has to be at most this.
        remedy: what to try where it is not.
    """

    name: str
    value: float
    bound: float
    remedy: str

    @property
    def passed(self) -> bool:
        return self.value <= self.bound


@dataclass(frozen=True)
class Verification:
    """A base model and its patched twin on the same images. Intervals are 95 %, over images.

    Args:
        num_images: images compared.
        in_sample: whether an earlier stage has seen these images.
        outlier_fraction_before: share of the base model's patches above the threshold, at the detection block.
        outlier_fraction_after: share of the patched model's.
        outlier_ratio_interval: of after / before; `None` where there were none before.
        max_norm_before: largest patch norm of each block's output, base model.
        max_norm_after: the same of the patched model.
        tail_before: for each block, the 99.9th percentile of the patch norms over their median, base model.
        tail_after: the same of the patched model.
        register_norm: mean norm of the test-time registers at the detection block.
        feature_similarity: mean cosine between the pooled features of the two.
        feature_similarity_interval: of it.
        min_feature_similarity: the smallest.
        maps: attention and mean patch feature; `None` if not measured.
        controls: the same number of neurons used otherwise; `None` if not measured.
        neurons: each neuron alone; empty if not measured.
        checks: conditions of the verdict; empty if not judged.
        later_outlier_fractions: share of the patched model's patches in a second population of norms, at each block
            after the detection block; empty if that is the last, or if not measured.
        layer_share: neurons moved, over all of their layer, where that is largest; `None` if not measured.
    """

    num_images: int
    in_sample: bool
    outlier_fraction_before: float
    outlier_fraction_after: float
    outlier_ratio_interval: tuple[float, float] | None
    max_norm_before: tuple[float, ...]
    max_norm_after: tuple[float, ...]
    tail_before: tuple[float, ...]
    tail_after: tuple[float, ...]
    register_norm: float
    feature_similarity: float
    feature_similarity_interval: tuple[float, float]
    min_feature_similarity: float
    maps: MapChanges | None = None
    controls: Controls | None = None
    neurons: tuple[NeuronEffect, ...] = ()
    checks: tuple[GateCheck, ...] = ()
    later_outlier_fractions: tuple[float, ...] = ()
    layer_share: float | None = None

    @property
    def outlier_ratio(self) -> float:
        """Outliers after / before; 1 where there were none, because then nothing was shown to work."""
        return self.outlier_fraction_after / self.outlier_fraction_before if self.outlier_fraction_before else 1.0

    @property
    def verdict(self) -> str:
        """`fixed` if every condition holds, else `unresolved`."""
        return FIXED if self.checks and all(check.passed for check in self.checks) else UNRESOLVED


def verify(
    trial: Trial,
    neurons: Sequence[RegisterNeuron],
    *,
    shift_value: str,
    in_sample: bool,
    gate: GateConfig,
    seed: int = 0,
    processes: Processes | None = None,
) -> Verification:
    """Everything that is measured of a set of neurons, and the conditions of the verdict.

    Args:
        trial: on the images to verify with.
        neurons: to move; at least one.
        shift_value: as the patched model will use it.
        in_sample: whether an earlier stage has seen these images.
        gate: bounds of the conditions.
        seed: of the random draws.
        processes: those that have such a trial, on the same images; each runs its share of the controls.
    """
    processes = processes or Processes()
    patched, after = trial.patched(neurons, shift_value=shift_value), trial.after(neurons, shift_value=shift_value)
    few = trial.on_few(_FEW_IMAGES)
    found = compare(trial.before, after, in_sample=in_sample)
    found = dataclasses.replace(
        found,
        maps=map_changes(trial.model, patched, trial.batches, detection_layer=trial.rule.detection_layer),
        controls=run_controls(trial, few, neurons, shift_value=shift_value, seed=seed, processes=processes),
        neurons=neuron_effects(few, neurons, shift_value=shift_value, processes=processes),
        later_outlier_fractions=later_outlier_fractions(trial.before, after, trial.rule),
        layer_share=_layer_share(trial.model, neurons),
    )
    return dataclasses.replace(found, checks=gate_checks(found, gate))


def compare(before: Measured, after: Measured, *, in_sample: bool) -> Verification:
    """What patching changed."""
    similarity_B = after.similarity_to(before)
    return Verification(
        num_images=before.num_images,
        in_sample=in_sample,
        outlier_fraction_before=before.outlier_fraction,
        outlier_fraction_after=after.outlier_fraction,
        outlier_ratio_interval=interval_of_ratio(after.outliers_B, before.outliers_B),
        max_norm_before=tuple(before.norms.max_L.tolist()),
        max_norm_after=tuple(after.norms.max_L.tolist()),
        tail_before=_tail(before),
        tail_after=_tail(after),
        register_norm=after.register_norm,
        feature_similarity=float(similarity_B.mean()),
        feature_similarity_interval=interval_of_mean(similarity_B),
        min_feature_similarity=float(similarity_B.min()),
    )


def gate_checks(found: Verification, gate: GateConfig) -> tuple[GateCheck, ...]:
    """The conditions of `fixed`, with what was measured. The controls must have been run."""
    assert found.controls is not None
    zeroed_drift = max(0.0, 1 - found.controls.zeroed.feature_similarity)
    best_random = min(draw.outlier_ratio for draw in found.controls.random)
    return (
        GateCheck(
            "outliers after / before",
            found.outlier_ratio,
            gate.max_outlier_ratio,
            "Try more images (`--num-images`), another `--last-layer`, or another round (`--rounds`).",
        ),
        GateCheck(
            "feature drift (1 - mean cosine to the base model)",
            1 - found.feature_similarity,
            max(gate.max_drift, gate.max_drift_of_zeroed * zeroed_drift),
            "Try a later `--first-layer` or a smaller `--top-k`: some of these neurons carry features.",
        ),
        GateCheck(
            "outliers after / before, over the best of the random draws",
            found.outlier_ratio / best_random if best_random > 0 else 1.0,
            gate.max_ratio_of_random,
            "Random neurons take the outliers away too, so these are not special: check `--norm-threshold`.",
        ),
        *_later_checks(found, gate),
        *_share_checks(found, gate),
    )


def _later_checks(found: Verification, gate: GateConfig) -> tuple[GateCheck, ...]:
    """None where no block follows the detection block."""
    if not found.later_outlier_fractions:
        return ()
    worst = max(found.later_outlier_fractions)
    first = len(found.max_norm_after) - len(found.later_outlier_fractions)
    layer = first + found.later_outlier_fractions.index(worst)
    return (
        GateCheck(
            "patches in a second population at a later block / outliers before",
            worst / found.outlier_fraction_before if found.outlier_fraction_before else float(worst > 0),
            gate.max_later_ratio,
            f"Outliers stay or begin after block {first - 1}, by which they were told, most at block {layer}: try "
            f"`--detection-layer {layer}`.",
        ),
    )


def _share_checks(found: Verification, gate: GateConfig) -> tuple[GateCheck, ...]:
    """None in files of earlier versions."""
    if found.layer_share is None:
        return ()
    return (
        GateCheck(
            "neurons moved / neurons of their layer",
            found.layer_share,
            gate.max_layer_share,
            "A whole layer writes these outliers, not a few register neurons: this method does not treat them.",
        ),
    )


def _layer_share(model: PreTrainedModel, neurons: Sequence[RegisterNeuron]) -> float:
    """The largest over the layers."""
    blocks = blocks_of(model)
    counts = Counter(neuron.layer for neuron in neurons)
    return max(count / down_projection(blocks[layer]).in_features for layer, count in counts.items())


def _tail(measured: Measured) -> tuple[float, ...]:
    patches = measured.norms.patches
    return tuple((patches.quantile(0.999) / patches.quantile(0.5)).tolist())
