"""Sets of neurons that were tried while one was chosen."""

from collections.abc import Sequence
from dataclasses import dataclass

from ttreg_hf.measuring.intervention import Intervention, Outcome
from ttreg_hf.register_neuron import RegisterNeuron


@dataclass(frozen=True)
class SelectionStep:
    """One set of neurons that was tried.

    Args:
        stage: `"grow"`, `"prune"` (not needed?), `"cost"` (worth its cost?), `"elsewhere"` (on other images: is one
            missing?) or `"value"` (`per_layer`).
        num_neurons: in the set.
        outlier_ratio: outliers after / before.
        feature_similarity: mean cosine of the pooled feature to the base model's.
        kept: whether it became the set to go on with.
    """

    stage: str
    num_neurons: int
    outlier_ratio: float
    feature_similarity: float
    kept: bool


class TriedSets:
    """All sets that were tried on the same images, each only once.

    Args:
        intervention: on these images.
        budget: forward passes of single images that may be spent.
        core: neurons that every set holds besides.
        stage: what all steps here are of; each step's own by default.
    """

    def __init__(
        self,
        intervention: Intervention,
        budget: int,
        *,
        core: tuple[RegisterNeuron, ...] = (),
        stage: str | None = None,
    ) -> None:
        self.intervention, self.budget, self.core, self.stage = intervention, budget, core, stage
        self.within_budget = True
        self.path: list[SelectionStep] = []
        self._known: dict[tuple[RegisterNeuron, ...], Outcome] = {}

    def outcome(self, neurons: tuple[RegisterNeuron, ...]) -> Outcome:
        """What the core and these do."""
        if neurons not in self._known:
            self._known[neurons] = self.intervention.outcome(self.core + neurons)
        return self._known[neurons]

    def has_budget(self) -> bool:
        """Whether one more set may be tried."""
        if self.intervention.images_run + self.intervention.before.num_images > self.budget:
            self.within_budget = False
        return self.within_budget

    def join(self, others: "TriedSets") -> None:
        """Their path follows this one."""
        self.path += others.path
        self.within_budget = self.within_budget and others.within_budget

    def note(self, stage: str, neurons: Sequence[RegisterNeuron], outcome: Outcome, kept: bool) -> None:
        """A step of the path."""
        size, stage = len(self.core) + len(neurons), self.stage or stage
        self.path.append(SelectionStep(stage, size, outcome.outlier_ratio, outcome.feature_similarity, kept))
