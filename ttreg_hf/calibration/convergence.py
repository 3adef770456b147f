"""How many images are enough: what the best neurons would have been with fewer, and in two halves of the images."""

from dataclasses import dataclass

from torch import Tensor

from ttreg_hf.measuring.neuron_scores import ScoreStatistics, rank_neurons

_FIRST = 16
_STABLE = 0.95  # overlap of the two halves from which more images hardly change the neurons


@dataclass(frozen=True)
class Convergence:
    """Overlaps are shares from 0 to 1 of the best `top_k` neurons that two sets have in common.

    Args:
        top_k: neurons compared.
        num_images: that were scored among the first 16, 32, ... of the order, and the last, all.
        overlap_with_final: of the neurons found with so many images, with those found with all.
        overlap_of_halves: of those found with the images at even and at odd places among so many.
    """

    top_k: int
    num_images: tuple[int, ...]
    overlap_with_final: tuple[float, ...]
    overlap_of_halves: tuple[float, ...]


def milestones(num_images: int) -> tuple[int, ...]:
    """16, 32, 64 ... below the number of images."""
    return tuple(_FIRST << power for power in range(64) if _FIRST << power < num_images)


def convergence(
    snapshots: dict[int, ScoreStatistics], *, first_layer: int, last_layer: int, top_k: int
) -> Convergence:
    """The curve of a run.

    Args:
        snapshots: statistics after so many images; the last one is the final one.
        first_layer: of the layers searched.
        last_layer: of the layers searched, inclusive.
        top_k: neurons to compare.
    """

    def best(scores_LF: Tensor) -> set[tuple[int, int]]:
        ranked = rank_neurons(scores_LF, first_layer=first_layer, last_layer=last_layer, top_k=top_k)
        return {(neuron.layer, neuron.neuron) for neuron in ranked}

    final = best(list(snapshots.values())[-1].scores())
    halves = [[best(half) for half in statistics.half_scores()] for statistics in snapshots.values()]
    return Convergence(
        top_k=top_k,
        num_images=tuple(snapshots),
        overlap_with_final=tuple(_overlap(best(found.scores()), final) for found in snapshots.values()),
        overlap_of_halves=tuple(_overlap(even, odd) for even, odd in halves),
    )


def is_stable(found: Convergence) -> bool:
    """Whether the halves agreed at the last two numbers of images."""
    return len(found.num_images) >= 2 and min(found.overlap_of_halves[-2:]) >= _STABLE


def _overlap(one: set[tuple[int, int]], other: set[tuple[int, int]]) -> float:
    return len(one & other) / max(len(one), len(other), 1)
