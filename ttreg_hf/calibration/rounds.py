"""What the rounds of a calibration give: scores, and the neurons that were chosen by them."""

from dataclasses import dataclass

from torch import Tensor

from ttreg_hf.calibration.candidates import Candidate
from ttreg_hf.calibration.convergence import Convergence
from ttreg_hf.calibration.search import Search
from ttreg_hf.calibration.selection import Selection
from ttreg_hf.measuring.intervention import Outcome
from ttreg_hf.register_neuron import RegisterNeuron


@dataclass(frozen=True)
class RoundScores:
    """One round's scores, over all processes.

    Args:
        search: where was looked.
        scores_LF: the paper's, float64 on the CPU.
        images_scored: how many were gone through.
        images_with_outliers: how many of those had one.
        convergence: how the best neurons settled.
        stopped_at: an index, if an early stop came.
    """

    search: Search
    scores_LF: Tensor
    images_scored: int
    images_with_outliers: int
    convergence: Convergence
    stopped_at: int | None


@dataclass(frozen=True)
class Choice:
    """The register neurons, and how they were chosen.

    Args:
        selections: one entry a round; the last one is the choice.
        candidates: what is known of each chosen neuron.
    """

    selections: tuple[Selection, ...]
    candidates: tuple[Candidate, ...]

    @property
    def outcome(self) -> Outcome:
        """What the choice does to the images that chose it."""
        return self.selections[-1].outcome

    @property
    def register_neurons(self) -> tuple[RegisterNeuron, ...]:
        """By the paper's score, highest first, then by layer and neuron."""
        return tuple(sorted(self.selections[-1].register_neurons, key=lambda n: (-n.score, n.layer, n.neuron)))
