"""The stages of a calibration, in order, over one tower and its images: inspect, score, select, verify.

What only a few images are needed for, every process does on the same images; the first one's choice is taken. Controls
and single neurons are shared out.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from ttreg_hf.calibration.candidates import Candidate, rank_by_contrast
from ttreg_hf.calibration.config import GateConfig
from ttreg_hf.calibration.convergence import Convergence
from ttreg_hf.calibration.inputs import Inputs
from ttreg_hf.calibration.inspection import MOST_IMAGES_KEPT, Inspection, inspect, norms_of
from ttreg_hf.calibration.run_state import StateStore
from ttreg_hf.calibration.score_pass import ScorePass
from ttreg_hf.calibration.search import SCORE, SELECT, VERIFY, Search, role_of, search_of
from ttreg_hf.calibration.selection import PER_NEURON, Selection, SelectionConfig, select
from ttreg_hf.calibration.verification import Verification, verify
from ttreg_hf.images.batches import Batch, ImageBatches
from ttreg_hf.images.progress import Progress, Say
from ttreg_hf.measuring.batch_limit import BatchLimit
from ttreg_hf.measuring.intervention import Intervention, Outcome
from ttreg_hf.measuring.neuron_scores import rank_neurons
from ttreg_hf.measuring.outlier_rule import OutlierRule
from ttreg_hf.measuring.tower import VisionTower
from ttreg_hf.register_neuron import RegisterNeuron

_TO_SELECT, _TO_CHECK_SELECTION = 32, 64  # images, at most; those that scored join in choosing


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
    def shift_value(self) -> str:
        return self.selections[-1].shift_value

    @property
    def outcome(self) -> Outcome:
        """What the choice does to the images that chose it."""
        return _outcome(self.selections[-1])

    @property
    def register_neurons(self) -> tuple[RegisterNeuron, ...]:
        """By the paper's score, highest first, then by layer and neuron."""
        return tuple(sorted(self.selections[-1].register_neurons, key=lambda n: (-n.score, n.layer, n.neuron)))


class Stages:
    """The stages over one model's images.

    Args:
        inputs: what is measured, on what.
        progress: shows how far it is.
        say: takes lines for people.
    """

    def __init__(self, inputs: Inputs, progress: Progress, say: Say) -> None:
        self.tower, self.batches, self.config = inputs.tower, inputs.batches, inputs.config
        self.processes = self.batches.processes
        self.progress, self.say, self.limit = progress, say, BatchLimit(say)
        by_role = {role: self._with_role(role) for role in (SCORE, SELECT, VERIFY)}
        self.is_split = self.config.top_k is None and all(
            images.on_every_process().without_workers().holds_any() for images in by_role.values()
        )
        self._by_role = by_role

    def images_for(self, role: str) -> ImageBatches:
        """Those that a stage sees: all of them, where there are too few to split."""
        return self._by_role[role] if self.is_split else self.batches

    def inspect(
        self, tower: VisionTower | None = None, *, rule: OutlierRule | None = None, most: int = MOST_IMAGES_KEPT
    ) -> Inspection:
        """Norms of the first images that are not there to verify.

        Args:
            tower: patched by an earlier round; the base model's by default.
            rule: which tokens are outliers, if an earlier round has said so.
            most: images to look at.

        Raises:
            ValueError: there is no readable image.
        """
        images = self.batches.up_to(most)
        if self.is_split:
            images = images.where(lambda index: role_of(index, self.config.seed) != VERIFY)
        shown = self.progress("inspect", images, images.num_images)
        statistics, patch_norms = norms_of(tower or self.tower, shown, self.processes, self.limit)
        if statistics.num_images == 0:
            unreadable = "".join(f" {bad.reason}." for bad in self.batches.read_by_all().bad_images.values())
            raise ValueError(
                f"Calibration needs at least one readable image, got none. Check the data set or folder.{unreadable}"
            )
        layer = self.tower.default_detection_layer
        return inspect(statistics, patch_norms, self.config, default_layer=layer, rule=rule)

    def score(
        self,
        inspection: Inspection,
        tower: VisionTower | None = None,
        *,
        store: StateStore | None = None,
        early_stop: bool = False,
    ) -> RoundScores:
        """The paper's score of every neuron between the layers that were inspected."""
        search = search_of(self.config, inspection)
        scorer = ScorePass(tower or self.tower, search, self.config, self.processes, self.say, self.limit)
        snapshots = scorer.run(self.images_for(SCORE), self.progress, store=store, early_stop=early_stop)
        last = list(snapshots.values())[-1]
        return RoundScores(
            search=search,
            scores_LF=last.scores().cpu(),
            images_scored=last.images_seen,
            images_with_outliers=last.images_with_outliers,
            convergence=scorer.convergence(snapshots),
            stopped_at=scorer.stopped_at,
        )

    def select(self, scores: RoundScores, gate: GateConfig) -> Choice:
        """The smallest set that works, in as many rounds as improve it."""
        rule = scores.search.rule
        intervention = self._to_select(rule)
        others = self._intervention("select", SCORE, rule, _TO_CHECK_SELECTION) if self.is_split else None
        ranked = self._ranked(scores, self.tower, intervention.batches)
        candidates = {_pair(candidate.register_neuron): candidate for candidate in ranked}
        selection = self._selection(ranked, intervention, others)
        selections = [selection]
        while len(selections) < self.config.rounds and _outcome(selection).outlier_ratio > gate.max_outlier_ratio:
            self.say(
                f"{_outcome(selection).outlier_ratio:.0%} of the outliers stay, looking again on the patched model"
            )
            patched = self.tower.patched(selection.register_neurons, shift_value=selection.shift_value)
            again = self.inspect(patched, rule=rule)
            if not again.has_outliers:
                break
            more = self._ranked(self.score(again, patched), patched, intervention.batches)
            chosen = {_pair(neuron): candidates[_pair(neuron)] for neuron in selection.register_neurons}
            fresh = [candidate for candidate in more if _pair(candidate.register_neuron) not in chosen]
            following = self._selection([*chosen.values(), *fresh], intervention, others)
            if not _outcome(following).outlier_ratio < _outcome(selection).outlier_ratio:
                break
            selection = following
            selections.append(selection)
            candidates = {_pair(candidate.register_neuron): candidate for candidate in fresh} | candidates
        return Choice(
            selections=tuple(selections),
            candidates=tuple(candidates[_pair(neuron)] for neuron in selection.register_neurons),
        )

    def verify(
        self, neurons: Sequence[RegisterNeuron], rule: OutlierRule, *, shift_value: str, gate: GateConfig
    ) -> Verification:
        """On images that no stage has seen, if there are any with outliers."""
        intervention, in_sample = self._intervention("verify", VERIFY, rule, gate.num_images), not self.is_split
        if self.is_split and not intervention.has_outliers:  # too few images to show anything
            intervention, in_sample = self._intervention("verify", None, rule, gate.num_images), True
        return verify(
            intervention,
            neurons,
            shift_value=shift_value,
            in_sample=in_sample,
            gate=gate,
            seed=self.config.seed,
            processes=self.processes,
        )

    def _with_role(self, role: str) -> ImageBatches:
        return self.batches.where(lambda index: role_of(index, self.config.seed) == role)

    def _to_select(self, rule: OutlierRule) -> Intervention:
        intervention = self._intervention("select", SELECT, rule, _TO_SELECT)
        if self.is_split and not intervention.has_outliers:
            return self._intervention("select", None, rule, _TO_SELECT)
        return intervention

    def _intervention(self, stage: str, role: str | None, rule: OutlierRule, most: int) -> Intervention:
        images = (self.batches if role is None else self.images_for(role)).on_every_process()
        shown: Iterable[Batch] = self.progress(stage, images.first(most), min(images.num_images, most))
        return Intervention(self.tower, shown, rule, self.limit)

    def _ranked(self, scores: RoundScores, tower: VisionTower, batches: Sequence[Batch]) -> tuple[Candidate, ...]:
        search = scores.search
        best = rank_neurons(
            scores.scores_LF,
            first_layer=search.first_layer,
            last_layer=search.last_layer,
            top_k=SelectionConfig().most_neurons,
        )
        return rank_by_contrast(tower, batches, search.rule, best, limit=self.limit)

    def _selection(
        self, ranked: Sequence[Candidate], intervention: Intervention, others: Intervention | None
    ) -> Selection:
        for images in filter(None, (intervention, others)):
            images.images_run = 0
        neurons = [candidate.register_neuron for candidate in ranked]
        dense = {candidate.register_neuron for candidate in ranked if not candidate.is_sparse}
        chosen = select(neurons, intervention, others=others, dense=dense, budget=self.config.budget)
        return self.processes.share(chosen)


def _outcome(selection: Selection) -> Outcome:
    return selection.per_neuron if selection.shift_value == PER_NEURON else selection.per_layer


def _pair(neuron: RegisterNeuron) -> tuple[int, int]:
    return neuron.layer, neuron.neuron
