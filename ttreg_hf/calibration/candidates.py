"""What the best neurons do on outlier tokens and elsewhere: contrast, consistency, sparsity.

Letters: `B` images, `T` tokens, `N` patches, `k` candidates of a layer.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ttreg_hf.images.batches import Batch
from ttreg_hf.measuring.batch_limit import BatchLimit
from ttreg_hf.measuring.neuron_scores import ACTIVE
from ttreg_hf.measuring.outlier_rule import OutlierRule
from ttreg_hf.measuring.recorder import Recorder
from ttreg_hf.measuring.tower import VisionTower
from ttreg_hf.register_neuron import RegisterNeuron


@dataclass(frozen=True)
class Candidate:
    """A neuron, measured on images that did not score. Means over the images that have an outlier.

    Args:
        register_neuron: with the paper's score.
        contrast: mean |activation| on the outlier tokens minus that on the other patches.
        consistency: share of the images in which it is twice as active on the outliers as elsewhere.
        sparsity: share of the patches on which it is not active (|activation| below 0.5).
    """

    register_neuron: RegisterNeuron
    contrast: float
    consistency: float
    sparsity: float


def measure_candidates(
    tower: VisionTower,
    batches: Iterable[Batch],
    rule: OutlierRule,
    neurons: Sequence[RegisterNeuron],
    *,
    limit: BatchLimit | None = None,
) -> tuple[Candidate, ...]:
    """One for each neuron, in their order.

    Args:
        tower: of the base model, or patched by an earlier round.
        batches: images that did not score.
        rule: which tokens are outliers.
        neurons: the best by the paper's score.
        limit: how many images go through the model at once.
    """
    limit, layout = limit or BatchLimit(), tower.layout
    by_layer = {layer: [n for n in neurons if n.layer == layer] for layer in sorted({n.layer for n in neurons})}
    sums: dict[int, list[Tensor]] = {layer: [] for layer in by_layer}
    recorder = Recorder(
        tower,
        by_layer,
        norm_layers=[rule.detection_layer],
        stop_after=max(rule.detection_layer, *by_layer),
    )
    with recorder:
        for _, recording in (part for batch in batches for part in limit.record(recorder, batch)):
            outliers_BN = rule.outliers(recording, layout, 0)[:, layout.patches]
            has_any = outliers_BN.any(1)
            for layer, found in by_layer.items():
                index = torch.tensor([neuron.neuron for neuron in found], device=outliers_BN.device)
                acts_BNk = recording.acts_by_layer[layer][:, layout.patches][..., index].abs()
                sums[layer].append(_per_image(acts_BNk.double(), outliers_BN)[has_any].cpu())
    measured: dict[RegisterNeuron, Candidate] = {}
    for layer, found in by_layer.items():
        images = torch.cat(sums[layer])
        means = images.mean(0) if len(images) else torch.zeros(3, len(found))
        measured |= {neuron: Candidate(neuron, *row) for neuron, row in zip(found, means.T.tolist(), strict=True)}
    return tuple(measured[neuron] for neuron in neurons)


def _per_image(acts_BNk: Tensor, outliers_BN: Tensor) -> Tensor:
    """`(B, 3, k)`: contrast, whether it is twice as active on the outliers, share of quiet patches."""
    outliers_BN1 = outliers_BN.unsqueeze(-1)
    on_outliers = (acts_BNk * outliers_BN1).sum(1) / outliers_BN1.sum(1).clamp_min(1)
    elsewhere = (acts_BNk * ~outliers_BN1).sum(1) / (~outliers_BN1).sum(1).clamp_min(1)
    is_twice = (on_outliers > 2 * elsewhere).double()
    return torch.stack([on_outliers - elsewhere, is_twice, (acts_BNk < ACTIVE).double().mean(1)], dim=1)
