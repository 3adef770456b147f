"""What moving neurons does to a planted model, measured at every block: the truth that a calibration is held to.

Letters: `L` blocks, `B` images, `T` tokens, `N` patches.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.planted_truth import KnownModel
from ttreg_hf.applying import add_test_time_registers
from ttreg_hf.measuring.position_report import Place
from ttreg_hf.measuring.recorder import Recorder
from ttreg_hf.measuring.tower import VisionTower

_SAME = 0.97  # cosine of features that count as unchanged
GONE = 0.1  # of the outliers may stay for them to count as gone; the verdict's gate says the same


@dataclass(frozen=True)
class Effect:
    """What moving some neurons does.

    Args:
        outliers_left: outliers after / before; a patch that is one at any block counts. 1 if there were none.
        similarity: mean cosine between the pooled features before and after.
    """

    outliers_left: float
    similarity: float


def effect_of(
    known: KnownModel,
    pairs: Iterable[tuple[int, int]],
    images: Tensor | None = None,
    fixed_positions: Iterable[Place] = (),
) -> Effect:
    """Move neurons `(layer, neuron)`, and spikes of the position table, and see what that does.

    Args:
        known: the model.
        pairs: the neurons.
        images: by default those that the model was tuned on.
        fixed_positions: rows and columns of the table.
    """
    images = known.sample if images is None else images
    before_BN, feature_before_BD = _look(known, known.model, images)
    neurons = [list(pair) for pair in sorted(pairs)]
    patched = add_test_time_registers(known.model, neurons, fixed_positions=sorted(fixed_positions))
    after_BN, feature_after_BD = _look(known, patched, images)
    before = int(before_BN.sum())
    return Effect(
        outliers_left=int(after_BN.sum()) / before if before else 1.0,
        similarity=float(torch.cosine_similarity(feature_before_BD, feature_after_BD).mean()),
    )


def check_truth(known: KnownModel) -> None:
    """See that a model that can be fixed is what it says; one that is not would judge calibration wrongly.

    Raises:
        ValueError: outliers are too few or too many; or moving all that makes them leaves some or changes the feature.
    """
    if "fixed" not in known.verdicts:
        return
    fraction = float(outliers_of(known).float().mean())
    effect = effect_of(known, known.planted_pairs, fixed_positions=known.fixed_positions)
    if not 0.005 < fraction < 0.2 or effect.outliers_left >= GONE or effect.similarity < _SAME:
        raise ValueError(
            "A planted model has outliers on 0.5 to 20 % of its patches, and moving what was planted takes them away "
            f"and leaves the feature; this one has {fraction:.1%}, and then {effect}. Take another seed."
        )


def needed_neurons(known: KnownModel) -> set[tuple[int, int]]:
    """A smallest set of the planted neurons: none can be left out without outliers staying; the weakest go first."""
    needed = known.planted_pairs
    for neuron in reversed(known.register_neurons):
        without = needed - {(neuron.layer, neuron.neuron)}
        if without and effect_of(known, without).outliers_left < GONE:
            needed = without
    return needed


def outliers_of(known: KnownModel, images: Tensor | None = None) -> Tensor:
    """Which patches are an outlier at any block, bool `(B, N)`."""
    return _look(known, known.model, known.sample if images is None else images)[0]


def _look(known: KnownModel, model: PreTrainedModel, images: Tensor) -> tuple[Tensor, Tensor]:
    tower = VisionTower.of(model)
    with Recorder(tower) as recorder:
        recording = recorder(images)
    norms_LBN = recording.norms_LBT[:, :, tower.layout.patches]
    assert recording.feature_BD is not None  # all blocks ran
    return (norms_LBN > known.norm_threshold).any(0), recording.feature_BD
