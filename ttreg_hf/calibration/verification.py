"""Fourth stage: does moving these neurons take the outliers away, leave the features alone, and beat the controls?

Letters: `L` blocks, `U` photographs.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields

from ttreg_hf.calibration.comparison import Comparison, compare
from ttreg_hf.calibration.config import GateConfig, InspectionConfig
from ttreg_hf.calibration.controls import Controls, NeuronEffect, neuron_effects, run_controls
from ttreg_hf.calibration.gate import Drift, Drifts, GateCheck, gate_checks, zeroing_passes
from ttreg_hf.calibration.later_outliers import later_outlier_fractions
from ttreg_hf.calibration.verdict import FIXED, MIN_VERIFIED, MIN_WITH_OUTLIERS, UNRESOLVED, too_few_for_fixed
from ttreg_hf.images.processes import Processes
from ttreg_hf.measuring.feature_drift import FeatureDrift, Seen, feature_drifts
from ttreg_hf.measuring.head_room import HeadRooms, measure_head_room
from ttreg_hf.measuring.intervention import Intervention
from ttreg_hf.measuring.map_changes import MapChanges, map_changes
from ttreg_hf.measuring.perturbations import PixelScale, as_jpeg, shifted
from ttreg_hf.measuring.tower import VisionTower
from ttreg_hf.register_neuron import RegisterNeuron

_FEW_IMAGES = 16  # with outliers; what needs a pass for each of many sets is measured on these


@dataclass(frozen=True)
class Verification(Comparison):
    """A comparison, what it is held against, and the conditions of the verdict.

    Args:
        in_sample: whether an earlier stage has seen these images.
        places: of the images, in the order of their source.
        drifts: of the features, and what it is to be compared with.
        zeroing_passes: whether zeroing the neurons keeps the bounds too, so that moving was not shown to be needed.
        maps: attention and mean patch feature.
        controls: the same number of neurons used otherwise.
        neurons: each neuron alone.
        later_outlier_fractions: share of the patched model's patches in a second population of norms, at each block
            after the detection block; empty if that is the last.
        layer_share: neurons moved, over all of their layer, where that is largest.
        checks: conditions of the verdict.
        head_rooms: of the linear layers, for number formats narrower than those that were measured in.
    """

    in_sample: bool
    places: tuple[int, ...]
    drifts: Drifts
    zeroing_passes: bool
    maps: MapChanges
    controls: Controls
    neurons: tuple[NeuronEffect, ...]
    later_outlier_fractions: tuple[float, ...]
    layer_share: float
    checks: tuple[GateCheck, ...]
    head_rooms: HeadRooms | None = None

    @property
    def verdict(self) -> str:
        """`fixed` if every condition holds on enough photographs, else `unresolved`."""
        is_enough = self.num_photographs >= MIN_VERIFIED and self.photographs_with_outliers >= MIN_WITH_OUTLIERS
        return FIXED if is_enough and all(check.passed for check in self.checks) else UNRESOLVED

    def reasons(self, num_photographs: int) -> tuple[str, ...]:
        """Why it is not `fixed`, the number of photographs first.

        Args:
            num_photographs: in all, those of earlier stages included.
        """
        too_few = too_few_for_fixed(
            num_photographs=num_photographs,
            verified=self.num_photographs,
            with_outliers=self.photographs_with_outliers,
        )
        failed = tuple(check.reason for check in self.checks if not check.passed)
        return failed if too_few is None else (too_few, *failed)


def verify(
    intervention: Intervention,
    neurons: Sequence[RegisterNeuron],
    *,
    shift_value: str = "per_neuron",
    in_sample: bool,
    gate: GateConfig,
    inspection: InspectionConfig | None = None,
    pixel_scale: PixelScale | None = None,
    seed: int = 0,
    processes: Processes | None = None,
) -> Verification:
    """Everything that is measured of a set of neurons, and the conditions of the verdict.

    Args:
        intervention: on the images to verify with; its options may name spikes of the position table.
        neurons: to move; at least one, where there are no such spikes.
        shift_value: as the patched model will use it.
        in_sample: whether an earlier stage has seen these images.
        gate: bounds of the conditions.
        inspection: when large norms at later blocks count as a population of their own.
        pixel_scale: brightness of `pixel_values`; as good as it can be told from the images by default.
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
    later = later_outlier_fractions(intervention.before, after, intervention.rule, inspection)
    share = _layer_share(tower, neurons)
    moved, zeroed, jpeg, moved_by_a_patch = _drifts(
        intervention, patched, neurons, shift_value, pixel_scale or PixelScale()
    )
    return Verification(
        **{field.name: getattr(comparison, field.name) for field in fields(comparison)},
        in_sample=in_sample,
        places=intervention.before.places,
        drifts=Drifts(*map(Drift.of, (moved, zeroed, jpeg, moved_by_a_patch))),
        zeroing_passes=zeroing_passes(zeroed, controls.zeroed.outlier_ratio, gate),
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
        checks=gate_checks(comparison, moved, zeroed, controls, later, share, gate),
        head_rooms=_head_rooms(intervention, patched),
    )


def _drifts(
    intervention: Intervention,
    patched: VisionTower,
    neurons: Sequence[RegisterNeuron],
    shift_value: str,
    pixel_scale: PixelScale,
) -> tuple[FeatureDrift, ...]:
    """Moved, zeroed, as JPEG, and shifted by a patch."""
    base = intervention.tower
    zeroed = intervention.nowhere(neurons, shift_value=shift_value)
    seen = {
        "moved": Seen(patched),
        "zeroed": Seen(zeroed),
        "jpeg": Seen(base, as_jpeg(pixel_scale)),
        "shifted": Seen(base, shifted(base.base_layout.patch_size[1])),
    }
    found = feature_drifts(base, seen, intervention.batches, intervention.before, intervention.limit)
    return tuple(found[name] for name in seen)


def _head_rooms(intervention: Intervention, patched: VisionTower) -> HeadRooms:
    rooms = (
        measure_head_room(tower, intervention.batches, limit=intervention.limit)
        for tower in (intervention.tower, patched)
    )
    return HeadRooms(*rooms)


def _layer_share(tower: VisionTower, neurons: Sequence[RegisterNeuron]) -> float:
    """The largest over the layers; 0 where no neuron is moved."""
    counts = Counter(neuron.layer for neuron in neurons)
    return max((count / tower.widths[layer] for layer, count in counts.items()), default=0.0)
