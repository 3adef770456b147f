"""Fourth stage: does moving these neurons take the outliers away, leave the features alone, and beat the controls?

Letters: `L` blocks, `B` images.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields

from ttreg_hf.calibration.config import GateConfig
from ttreg_hf.calibration.controls import Controls, NeuronEffect, neuron_effects, run_controls
from ttreg_hf.calibration.later_outliers import later_outlier_fractions
from ttreg_hf.images.processes import Processes
from ttreg_hf.measuring.intervals import interval_of_mean, interval_of_ratio
from ttreg_hf.measuring.intervention import Intervention
from ttreg_hf.measuring.map_changes import MapChanges, map_changes
from ttreg_hf.measuring.measurement import Measurement
from ttreg_hf.measuring.tower import VisionTower
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
        interval: 95 %, over images; `None` where there is none.
    """

    name: str
    value: float
    bound: float
    remedy: str
    interval: tuple[float, float] | None = None

    @property
    def passed(self) -> bool:
        return self.value <= self.bound


@dataclass(frozen=True)
class Comparison:
    """A base model and its patched twin on the same images. Intervals are 95 %, over images.

    Args:
        num_images: images compared.
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
    """

    num_images: int
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

    @property
    def outlier_ratio(self) -> float:
        """Outliers after / before; 1 where there were none, because then nothing was shown to work."""
        return self.outlier_fraction_after / self.outlier_fraction_before if self.outlier_fraction_before else 1.0

    @property
    def drift(self) -> float:
        """1 - mean cosine of the pooled feature to the base model's."""
        return 1 - self.feature_similarity

    @property
    def drift_interval(self) -> tuple[float, float]:
        low, high = self.feature_similarity_interval
        return 1 - high, 1 - low


@dataclass(frozen=True)
class Verification(Comparison):
    """A comparison, what it is held against, and the conditions of the verdict.

    Args:
        in_sample: whether an earlier stage has seen these images.
        maps: attention and mean patch feature.
        controls: the same number of neurons used otherwise.
        neurons: each neuron alone.
        later_outlier_fractions: share of the patched model's patches in a second population of norms, at each block
            after the detection block; empty if that is the last.
        layer_share: neurons moved, over all of their layer, where that is largest.
        checks: conditions of the verdict.
    """

    in_sample: bool
    maps: MapChanges
    controls: Controls
    neurons: tuple[NeuronEffect, ...]
    later_outlier_fractions: tuple[float, ...]
    layer_share: float
    checks: tuple[GateCheck, ...]

    @property
    def verdict(self) -> str:
        """`fixed` if every condition holds, else `unresolved`."""
        return FIXED if all(check.passed for check in self.checks) else UNRESOLVED


def verify(
    intervention: Intervention,
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
        intervention: on the images to verify with.
        neurons: to move; at least one.
        shift_value: as the patched model will use it.
        in_sample: whether an earlier stage has seen these images.
        gate: bounds of the conditions.
        seed: of the random draws.
        processes: those that have such an intervention, on the same images; each runs its share of the controls.
    """
    processes, tower = processes or Processes(), intervention.tower
    patched = intervention.patched(neurons, shift_value=shift_value)
    after = intervention.after(neurons, shift_value=shift_value)
    few = intervention.on_few(_FEW_IMAGES)
    comparison = compare(intervention.before, after)
    controls = run_controls(
        intervention,
        few,
        neurons,
        shift_value=shift_value,
        draws=gate.random_draws,
        seed=seed,
        processes=processes,
    )
    later, share = later_outlier_fractions(intervention.before, after, intervention.rule), _layer_share(tower, neurons)
    return Verification(
        **{field.name: getattr(comparison, field.name) for field in fields(comparison)},
        in_sample=in_sample,
        maps=map_changes(
            tower,
            patched,
            intervention.batches,
            detection_layer=intervention.rule.detection_layer,
            limit=intervention.limit,
        ),
        controls=controls,
        neurons=neuron_effects(few, neurons, shift_value=shift_value, processes=processes),
        later_outlier_fractions=later,
        layer_share=share,
        checks=gate_checks(comparison, controls, later, share, gate),
    )


def compare(before: Measurement, after: Measurement) -> Comparison:
    """What patching changed."""
    similarity_B = after.similarity_to(before)
    return Comparison(
        num_images=before.num_images,
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


def gate_checks(
    found: Comparison, controls: Controls, later_fractions: Sequence[float], layer_share: float, gate: GateConfig
) -> tuple[GateCheck, ...]:
    """The conditions of `fixed`, with what was measured."""
    zeroed_drift = max(0.0, 1 - controls.zeroed.feature_similarity)
    best_random = min(draw.outlier_ratio for draw in controls.random)
    return (
        GateCheck(
            "outliers after / before",
            found.outlier_ratio,
            gate.max_outlier_ratio,
            "Try more images (`--num-images`), another `--last-layer`, or another round (`--rounds`).",
            found.outlier_ratio_interval,
        ),
        GateCheck(
            "feature drift (1 - mean cosine to the base model)",
            found.drift,
            max(gate.max_drift, gate.max_drift_of_zeroed * zeroed_drift),
            "Try a later `--first-layer` or a smaller `--top-k`: some of these neurons carry features.",
            found.drift_interval,
        ),
        GateCheck(
            "outliers after / before, over the best of the random draws",
            found.outlier_ratio / best_random if best_random > 0 else 1.0,
            gate.max_ratio_of_random,
            "Random neurons take the outliers away too, so these are not special: check `--norm-threshold`.",
        ),
        *_later_checks(found, later_fractions, gate),
        GateCheck(
            "neurons moved / neurons of their layer",
            layer_share,
            gate.max_layer_share,
            "A whole layer writes these outliers, not a few register neurons: this method does not treat them.",
        ),
    )


def _later_checks(found: Comparison, later_fractions: Sequence[float], gate: GateConfig) -> tuple[GateCheck, ...]:
    """None where no block follows the detection block."""
    if not later_fractions:
        return ()
    worst = max(later_fractions)
    first = len(found.max_norm_after) - len(later_fractions)
    layer = first + later_fractions.index(worst)
    return (
        GateCheck(
            "patches in a second population at a later block / outliers before",
            worst / found.outlier_fraction_before if found.outlier_fraction_before else float(worst > 0),
            gate.max_later_ratio,
            f"Outliers stay or begin after block {first - 1}, where they were detected, most at block {layer}: try "
            f"`--detection-layer {layer}`.",
        ),
    )


def _layer_share(tower: VisionTower, neurons: Sequence[RegisterNeuron]) -> float:
    """The largest over the layers."""
    counts = Counter(neuron.layer for neuron in neurons)
    return max(count / tower.widths[layer] for layer, count in counts.items())


def _tail(measurement: Measurement) -> tuple[float, ...]:
    patches = measurement.norms.patches
    return tuple((patches.quantile(0.999) / patches.quantile(0.5)).tolist())
