"""The stages of a calibration, in order, over one model and its images: inspect, score, select, verify.

What only a few images are needed for, every process does on the same images; the first one's choice is taken. Controls
and single neurons are shared out.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

from torch import Tensor
from transformers import PreTrainedModel

from ttreg_hf.applying import add_test_time_registers
from ttreg_hf.calibration.batch_limit import BatchLimit
from ttreg_hf.calibration.batches import Batch, ImageBatches
from ttreg_hf.calibration.candidates import Candidate, rank_by_contrast
from ttreg_hf.calibration.config import CalibrationConfig, GateConfig
from ttreg_hf.calibration.convergence import Convergence
from ttreg_hf.calibration.inspection import Inspection, inspect
from ttreg_hf.calibration.minimal_set import PER_NEURON, Selection, SelectionConfig, select
from ttreg_hf.calibration.outliers import OutlierRule
from ttreg_hf.calibration.passes import MOST_IMAGES_KEPT, Progress, ScorePass, norm_pass
from ttreg_hf.calibration.resuming import StateStore
from ttreg_hf.calibration.selection import rank_neurons
from ttreg_hf.calibration.session import end_and_bad_images
from ttreg_hf.calibration.settings import (
    SCORE,
    SELECT,
    VERIFY,
    Search,
    checked_layers,
    default_detection_layer,
    role_of,
    search_of,
)
from ttreg_hf.calibration.trial import Outcome, Trial
from ttreg_hf.calibration.verification import Verification, verify
from ttreg_hf.register_neuron import RegisterNeuron

_MOST_IMAGES = {SELECT: 32, SCORE: 64, VERIFY: 48}  # for a trial; those that scored join in choosing


@dataclasses.dataclass(frozen=True)
class Scored:
    """One round's scores, over all processes.

    Args:
        search: where was looked.
        scores_LF: the paper's, float64 on the CPU.
        images_scored: how many were gone through.
        images_with_outliers: how many of those had one.
        convergence: how the best neurons settled.
        stopped_at: a place, if an early stop came.
    """

    search: Search
    scores_LF: Tensor
    images_scored: int
    images_with_outliers: int
    convergence: Convergence
    stopped_at: int | None


class Stages:
    """The stages over one model's images.

    Args:
        model: the base model.
        batches: this process's images.
        config: what is given.
        progress: shows how far it is.
        say: takes lines for people.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        batches: ImageBatches,
        config: CalibrationConfig,
        progress: Progress,
        say: Callable[[str], None],
    ) -> None:
        self.model, self.batches, self.processes = model, batches, batches.processes
        self.config = checked_layers(config, model)
        self.progress, self.say, self.limit = progress, say, BatchLimit(say)
        by_role = {role: self._with_role(role) for role in (SCORE, SELECT, VERIFY)}
        self.is_split = config.top_k is None and all(
            images.on_every_process().without_workers().holds_any() for images in by_role.values()
        )
        self._by_role = by_role

    def images_for(self, role: str) -> ImageBatches:
        """Those that a stage sees: all of them, where there are too few to split."""
        return self._by_role[role] if self.is_split else self.batches

    def inspect(
        self, model: PreTrainedModel | None = None, *, rule: OutlierRule | None = None, most: int = MOST_IMAGES_KEPT
    ) -> Inspection:
        """Norms of the first images that are not there to verify.

        Args:
            model: patched by an earlier round; the base model by default.
            rule: which tokens are outliers, if an earlier round has said so.
            most: images to look at.

        Raises:
            ValueError: there is no readable image.
        """
        images = self.batches.up_to(most)
        if self.is_split:
            images = images.where(lambda place: role_of(place, self.config.seed) != VERIFY)
        shown = self.progress("inspect", images, images.num_images)
        statistics, patch_norms = norm_pass(model or self.model, shown, self.processes, self.limit)
        if statistics.num_images == 0:
            _, bad_images = end_and_bad_images(self.batches)
            unreadable = "".join(f" {bad.reason}." for bad in bad_images.values())
            raise ValueError(
                f"Calibration needs at least one readable image, got none. Check the data set or folder.{unreadable}"
            )
        layer = default_detection_layer(self.model)
        return inspect(statistics, patch_norms, self.config, default_layer=layer, rule=rule)

    def score(
        self,
        inspection: Inspection,
        model: PreTrainedModel | None = None,
        *,
        store: StateStore | None = None,
        early_stop: bool = False,
    ) -> Scored:
        """The paper's score of every neuron between the layers that were inspected."""
        search = search_of(self.config, inspection)
        scorer = ScorePass(model or self.model, search, self.config, self.processes, self.say, self.limit)
        snapshots = scorer.run(self.images_for(SCORE), self.progress, store=store, early_stop=early_stop)
        last = list(snapshots.values())[-1]
        return Scored(
            search=search,
            scores_LF=last.scores().cpu(),
            images_scored=last.images_seen,
            images_with_outliers=last.images_with_outliers,
            convergence=scorer.convergence(snapshots),
            stopped_at=scorer.stopped_at,
        )

    def select(self, scored: Scored, gate: GateConfig) -> "Chosen":
        """The smallest set that works, in as many rounds as improve it."""
        rule = scored.search.rule
        trial = self._trial("select", SELECT, rule)
        others = self._trial("select", SCORE, rule) if self.is_split else None
        ranked = self._ranked(scored, self.model, trial.batches)
        candidates = {_place(candidate.register_neuron): candidate for candidate in ranked}
        selection = self._selection(ranked, trial, others)
        selections = [selection]
        while len(selections) < self.config.rounds and _outcome(selection).outlier_ratio > gate.max_outlier_ratio:
            self.say(
                f"{_outcome(selection).outlier_ratio:.0%} of the outliers stay, looking again on the patched model"
            )
            patched = add_test_time_registers(
                self.model, selection.register_neurons, shift_value=selection.shift_value
            )
            again = self.inspect(patched, rule=rule)
            if not again.has_outliers:
                break
            more = self._ranked(self.score(again, patched), patched, trial.batches)
            chosen = {_place(neuron): candidates[_place(neuron)] for neuron in selection.register_neurons}
            fresh = [candidate for candidate in more if _place(candidate.register_neuron) not in chosen]
            following = self._selection([*chosen.values(), *fresh], trial, others)
            if not _outcome(following).outlier_ratio < _outcome(selection).outlier_ratio:
                break
            selection = following
            selections.append(selection)
            candidates = {_place(candidate.register_neuron): candidate for candidate in fresh} | candidates
        return Chosen(
            selections=tuple(selections),
            candidates=tuple(candidates[_place(neuron)] for neuron in selection.register_neurons),
        )

    def verify(
        self, neurons: Sequence[RegisterNeuron], rule: OutlierRule, *, shift_value: str, gate: GateConfig
    ) -> Verification:
        """On images that no stage has seen, if there are any with outliers."""
        trial, in_sample = self._trial("verify", VERIFY, rule), not self.is_split
        if self.is_split and not trial.has_outliers:  # too few images to show anything
            trial, in_sample = self._trial("verify", None, rule), True
        return verify(
            trial,
            neurons,
            shift_value=shift_value,
            in_sample=in_sample,
            gate=gate,
            seed=self.config.seed,
            processes=self.processes,
        )

    def _with_role(self, role: str) -> ImageBatches:
        return self.batches.where(lambda place: role_of(place, self.config.seed) == role)

    def _trial(self, stage: str, role: str | None, rule: OutlierRule) -> Trial:
        most = _MOST_IMAGES[role or VERIFY]
        images = (self.batches if role is None else self.images_for(role)).on_every_process()
        shown: Iterable[Batch] = self.progress(stage, images.first(most), min(images.num_images, most))
        trial = Trial(self.model, shown, rule, self.limit)
        if role == SELECT and self.is_split and not trial.has_outliers:
            return self._trial(stage, None, rule)
        return trial

    def _ranked(self, scored: Scored, model: PreTrainedModel, batches: Sequence[Batch]) -> tuple[Candidate, ...]:
        search = scored.search
        best = rank_neurons(
            scored.scores_LF,
            first_layer=search.first_layer,
            last_layer=search.last_layer,
            top_k=SelectionConfig().most_neurons,
        )
        return rank_by_contrast(model, batches, search.rule, best, limit=self.limit)

    def _selection(self, ranked: Sequence[Candidate], trial: Trial, others: Trial | None) -> Selection:
        for images in filter(None, (trial, others)):
            images.images_run = 0
        neurons = [candidate.register_neuron for candidate in ranked]
        common = {candidate.register_neuron for candidate in ranked if not candidate.is_sparse}
        chosen = select(neurons, trial, others=others, common=common, budget=self.config.budget)
        return self.processes.share(chosen)


@dataclasses.dataclass(frozen=True)
class Chosen:
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


def _outcome(selection: Selection) -> Outcome:
    return selection.per_neuron if selection.shift_value == PER_NEURON else selection.per_layer


def _place(neuron: RegisterNeuron) -> tuple[int, int]:
    return neuron.layer, neuron.neuron
