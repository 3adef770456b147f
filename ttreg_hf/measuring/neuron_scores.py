"""Scores of all neurons: sums that merge, divided once.

Letters: `L` blocks, `B` images, `T` tokens, `F` neurons; `2` halves of the images, even and odd places.
"""

import torch
from torch import Tensor

from ttreg_hf.measuring.outlier_means import outlier_means
from ttreg_hf.register_neuron import RegisterNeuron

ACTIVE = 0.5  # activation from which a token counts for the sparsity filter. Source: the paper's released code.


class ScoreStatistics:
    """Sum over images of each neuron's mean |activation| on the image's outlier tokens, and how many images had one.

    Even and odd places are kept apart, so that the two halves of the images can be compared.
    Source: Jiang et al. 2025 (arXiv 2506.08010), Algorithm 1; with the absolute activation of its released code.
    """

    def __init__(self, num_layers: int, num_neurons: int, device: torch.device) -> None:
        self.shape = (2, num_layers, num_neurons)
        self._sum_2LF = torch.zeros(self.shape, dtype=torch.float64, device=device)
        self._images_2 = torch.zeros(2, dtype=torch.float64, device=device)
        self.images_seen = 0

    def add(
        self,
        acts_by_layer: dict[int, Tensor],
        outliers_BT: Tensor,
        places: tuple[int, ...],
        max_active_fraction: float | None = None,
    ) -> None:
        """Take in a batch.

        Args:
            acts_by_layer: for each searched layer its activations `(B, T, F)`; the other layers keep score 0.
            outliers_BT: which tokens are outliers, bool.
            places: of the images in the global order.
            max_active_fraction: neurons active on more than this share of an image's tokens add 0 for that image.
        """
        half_2B = _halves(places, outliers_BT.device)
        self._images_2 += half_2B @ outliers_BT.any(1).double()
        self.images_seen += len(places)
        if not acts_by_layer:
            return
        layers, acts = list(acts_by_layer), list(acts_by_layer.values())
        means_LBF = outlier_means(acts, outliers_BT)
        if max_active_fraction is not None:
            active_LBF = torch.stack([(acts_BTF >= ACTIVE).float().mean(1) for acts_BTF in acts])
            means_LBF = torch.where(active_LBF > max_active_fraction, 0.0, means_LBF)
        sums_L2F = half_2B @ means_LBF.double()
        for layer, sums_2F in zip(layers, sums_L2F, strict=True):
            self._sum_2LF[:, layer, : sums_2F.shape[1]] += sums_2F

    def merge(self, other: "ScoreStatistics") -> None:
        """Take in what another process or another part of the images gave."""
        self._sum_2LF += other._sum_2LF
        self._images_2 += other._images_2
        self.images_seen += other.images_seen

    def scores(self) -> Tensor:
        """`(L, F)` float64, mean over the images that have an outlier; all 0 if none has."""
        return self._sum_2LF.sum(0) / self._images_2.sum().clamp_min(1)

    def half_scores(self) -> Tensor:
        """`(2, L, F)` float64, the scores by the images at even and at odd places alone."""
        return self._sum_2LF / self._images_2.clamp_min(1)[:, None, None]

    @property
    def images_with_outliers(self) -> int:
        return int(self._images_2.sum())

    def to_tensor(self) -> Tensor:
        """All sums as one flat float64 tensor; the sum of two such tensors is what `merge` gives."""
        return torch.cat([self._images_2.new_tensor([self.images_seen]), self._images_2, self._sum_2LF.flatten()])

    def from_tensor(self, values: Tensor) -> "ScoreStatistics":
        """Statistics of the same shape that hold what `to_tensor` gave."""
        twin = ScoreStatistics(self.shape[1], self.shape[2], values.device)
        twin.images_seen = int(values[0])
        twin._images_2, twin._sum_2LF = values[1:3].clone(), values[3:].reshape(self.shape).clone()
        return twin

    def copy(self) -> "ScoreStatistics":
        """The same sums, which later batches do not change."""
        return self.from_tensor(self.to_tensor())


def rank_neurons(scores_LF: Tensor, *, first_layer: int, last_layer: int, top_k: int) -> tuple[RegisterNeuron, ...]:
    """The best neurons of the layers searched: by score, highest first, then by layer and neuron.

    Args:
        scores_LF: one row a layer, from layer 0.
        first_layer: first layer to take neurons from, inclusive.
        last_layer: last layer, inclusive.
        top_k: how many at most. Neurons with score 0 are never taken.
    """
    searched = scores_LF[first_layer : last_layer + 1]
    values, places = searched.flatten().sort(descending=True, stable=True)
    width = searched.shape[1]
    return tuple(
        RegisterNeuron(first_layer + place // width, place % width, value)
        for value, place in zip(values[:top_k].tolist(), places[:top_k].tolist(), strict=True)
        if value > 0
    )


def _halves(places: tuple[int, ...], device: torch.device) -> Tensor:
    """Which half each image belongs to, `(2, B)` of 0 and 1, brought to the device without waiting for it."""
    odd_B = torch.tensor([place % 2 for place in places], dtype=torch.float64)
    half_2B = torch.stack([1 - odd_B, odd_B])
    if device.type != "cuda":
        return half_2B.to(device)
    return half_2B.pin_memory().to(device, non_blocking=True)
