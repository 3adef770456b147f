"""What the best neurons do on outlier tokens and elsewhere: contrast, consistency, sparsity.

Letters: `B` images, `T` tokens, `N` patches, `k` candidates of a layer.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ttreg_hf.calibration.config import CandidateConfig
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

    def fires_everywhere(self, config: CandidateConfig) -> bool:
        """Active on most patches, and hardly ever more so on the outliers: it does not single them out."""
        return self.sparsity < 1 - config.everywhere and self.consistency < config.hardly_ever

    def is_dense(self, config: CandidateConfig) -> bool:
        """Active on many patches, as a register neuron is not."""
        return self.sparsity < 1 - config.few


def rank_by_contrast(
    tower: VisionTower,
    batches: Iterable[Batch],
    rule: OutlierRule,
    neurons: Sequence[RegisterNeuron],
    *,
    limit: BatchLimit | None = None,
    config: CandidateConfig | None = None,
) -> tuple[Candidate, ...]:
    """The neurons by contrast, highest first, then by layer and index; those that fire everywhere come last.

    Args:
        tower: of the base model, or patched by an earlier round.
        batches: images that did not score.
        rule: which tokens are outliers.
        neurons: the best by the paper's score.
        limit: how many images go through the model at once.
        config: which neurons single the outliers out.
    """
    limit, config = limit or BatchLimit(), config or CandidateConfig()
    by_layer = {layer: [n for n in neurons if n.layer == layer] for layer in sorted({n.layer for n in neurons})}
    layout = tower.layout
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
                sums[layer].append(_per_image(acts_BNk.double(), outliers_BN, config)[has_any].cpu())
    candidates = []
    for layer, found in by_layer.items():
        images = torch.cat(sums[layer])
        means = images.mean(0) if len(images) else torch.zeros(3, len(found))
        for neuron, (contrast, fires, quiet) in zip(found, means.T.tolist(), strict=True):
            candidates.append(Candidate(neuron, contrast, fires, quiet))
    return tuple(
        sorted(
            candidates,
            key=lambda c: (c.fires_everywhere(config), -c.contrast, c.register_neuron.layer, c.register_neuron.neuron),
        )
    )


def _per_image(acts_BNk: Tensor, outliers_BN: Tensor, config: CandidateConfig) -> Tensor:
    """`(B, 3, k)`: contrast, whether it fires, share of quiet patches."""
    outliers_BN1 = outliers_BN.unsqueeze(-1)
    on_outliers = (acts_BNk * outliers_BN1).sum(1) / outliers_BN1.sum(1).clamp_min(1)
    elsewhere = (acts_BNk * ~outliers_BN1).sum(1) / (~outliers_BN1).sum(1).clamp_min(1)
    fires = (on_outliers > config.fires * elsewhere).double()
    contrast = on_outliers - config.elsewhere_weight * elsewhere
    return torch.stack([contrast, fires, (acts_BNk < ACTIVE).double().mean(1)], dim=1)
