"""The stages of a calibration, in order, over one tower and its images: inspect, score, select, verify.

What only a few images are needed for, every process does on the same images; the first one's choice is taken. Controls
and single neurons are shared out.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from ttreg_hf.calibration.candidates import Candidate, measure_candidates
from ttreg_hf.calibration.config import GateConfig
from ttreg_hf.calibration.constant_mode import ConstantMode, measure_constants
from ttreg_hf.calibration.inputs import Inputs
from ttreg_hf.calibration.inspection import MOST_IMAGES_KEPT, Inspection, inspect, look_of, norms_of
from ttreg_hf.calibration.rounds import Choice, RoundScores
from ttreg_hf.calibration.run_state import StateStore
from ttreg_hf.calibration.score_pass import ScorePass
from ttreg_hf.calibration.search import SCORE, SELECT, VERIFY, Roles, search_of
from ttreg_hf.calibration.selection import Selection, select
from ttreg_hf.calibration.verdict import MIN_TO_FIX, MIN_VERIFIED, Look
from ttreg_hf.calibration.verification import Verification, verify
from ttreg_hf.images.batches import Batch, ImageBatches
from ttreg_hf.images.progress import Progress, Say
from ttreg_hf.measuring.batch_limit import BatchLimit
from ttreg_hf.measuring.intervention import Intervention
from ttreg_hf.measuring.neuron_scores import rank_neurons
from ttreg_hf.measuring.norms import NormStatistics
from ttreg_hf.measuring.outlier_rule import OutlierRule
from ttreg_hf.measuring.patch_norms import PatchNorms
from ttreg_hf.measuring.perturbations import PixelScale
from ttreg_hf.measuring.position_report import Place, PositionReport
from ttreg_hf.measuring.position_source import position_report
from ttreg_hf.measuring.tower import VisionTower
from ttreg_hf.register_neuron import RegisterNeuron

_TO_AVERAGE = 64  # images whose registers the rows of constant mode are means over
_TO_FIND_SOURCE = 16  # images
_AT_TRAINING_SIZE = 64  # images, at most, that are also looked at there before a model is clean


class Stages:
    """The stages over one model's images.

    Args:
        inputs: what is measured, on what.
        progress: shows how far it is.
        say: takes lines for people.
    """

    def __init__(self, inputs: Inputs, progress: Progress, say: Say) -> None:
        self.inputs, self.tower, self.batches, self.config = inputs, inputs.tower, inputs.batches, inputs.config
        self.constants = inputs.constants
        self.processes = self.batches.processes
        self.progress, self.say, self.limit = progress, say, BatchLimit(say)
        self.photograph_of = inputs.photograph_of
        self.fixed_positions: tuple[Place, ...] = ()  # spikes of the position table that every twin takes away
        self._count = self.batches.expected_count()
        photographs = {self.photograph_of(place) for place in range(self._count)}
        self.num_photographs = len(photographs)
        self.is_split = self.config.top_k is None and self.num_photographs >= MIN_TO_FIX
        self._roles = Roles.of(photographs, self.config.seed)

    def taking(self, fixed_positions: Sequence[Place]) -> "Stages":
        """The same, with patched twins that take these spikes of the position table away."""
        other = copy.copy(self)
        other.fixed_positions = tuple(fixed_positions)
        return other

    @property
    def options(self) -> dict[str, Any]:
        """Of all twins."""
        return {"fixed_positions": [list(place) for place in self.fixed_positions]} if self.fixed_positions else {}

    @property
    def start(self) -> VisionTower:
        """Where the search for neurons begins: the base model, without its spikes where these are taken away."""
        return self.tower.patched([], **self.options) if self.fixed_positions else self.tower

    def images_for(self, role: str) -> ImageBatches:
        """Those that a stage sees: all of them, where there are too few to split."""
        return self._with_role(role) if self.is_split else self.batches

    def inspect(
        self, tower: VisionTower | None = None, *, rule: OutlierRule | None = None, most: int = MOST_IMAGES_KEPT
    ) -> Inspection:
        """Norms of the first images that are not there to verify; where these show no outliers, of those too.

        Args:
            tower: patched by an earlier round; the base model's by default.
            rule: which tokens are outliers, if an earlier round has said so.
            most: images to look at.

        Raises:
            ValueError: there is no readable image.
        """
        first = self.batches.up_to(most)
        if self.is_split:
            first = first.where(lambda place: self._role(place) != VERIFY)
        statistics, patch_norms = self.norms(first, tower)
        given: Any = {
            "default_layer": self.tower.default_detection_layer,
            "rule": rule,
            "settings": self.constants.inspection,
        }
        if statistics.num_images:
            found = inspect(statistics, patch_norms, self.config, **given)
            if found.has_outliers or not self.is_split or tower is not None:
                return found
        if self.is_split:
            held_out = self.batches.up_to(most).where(lambda place: self._role(place) == VERIFY)
            others, other_norms = self.norms(held_out, tower)
            statistics.merge(others)
            patch_norms.join(other_norms)
        if statistics.num_images == 0:
            unreadable = "".join(f" {bad.reason}." for bad in self.batches.read_by_all().bad_images.values())
            raise ValueError(
                f"Calibration needs at least one readable image, got none. Check the data set or folder.{unreadable}"
            )
        return inspect(statistics, patch_norms, self.config, **given)

    def position_report(self, inspection: Inspection) -> PositionReport:
        """Patches that stand out at the same places, and what makes them; a few images are looked at again for it."""
        grid = inspection.maps[0].grid if inspection.maps else None
        few = self.batches.on_every_process().without_workers().first(_TO_FIND_SOURCE)
        images = (batch.pixel_values for batch in few if self.tower.grid(batch.pixel_values) == grid)
        return self.processes.share(position_report(self.tower, inspection.maps, images))

    def looks(self, inspection: Inspection) -> tuple[Look, ...]:
        """What was seen at the images' size; where that is clean, also what is seen at the size of the training."""
        first_image = next(self.batches.on_every_process().without_workers().first(1))
        size = (first_image.pixel_values.shape[-2], first_image.pixel_values.shape[-1])
        look, training = look_of(inspection, size), self.tower.training_size
        if not look.is_clean or training is None or training == size:
            return (look,)
        images = self.batches.up_to(_AT_TRAINING_SIZE).at_size(training, size)
        at_training_size = inspect(
            *self.norms(images),
            self.config,
            default_layer=self.tower.default_detection_layer,
            settings=self.constants.inspection,
        )
        return look, look_of(at_training_size, training)

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
        num_others = self.constants.selection.num_others if self.is_split else 0
        others = self.intervention("select", SCORE, rule, num_others) if num_others else None
        candidates = self._candidates(scores, self.start, intervention)
        selections = [self._selection(candidates, intervention, others)]
        while len(selections) < self.config.rounds and selections[-1].outcome.outlier_ratio > gate.max_outlier_ratio:
            now = selections[-1]
            self.say(f"{now.outcome.outlier_ratio:.0%} of the outliers stay, looking again on the patched model")
            patched = self.tower.patched(now.register_neurons, **self.options)
            again = self.inspect(patched, rule=rule)
            if not again.has_outliers:
                break
            chosen = {_pair(neuron): candidates[_pair(neuron)] for neuron in now.register_neurons}
            candidates = chosen | self._candidates(self.score(again, patched), patched, intervention) | chosen
            following = self._selection(candidates, intervention, others)
            if not following.outcome.outlier_ratio < now.outcome.outlier_ratio:
                break
            selections.append(following)
        return Choice(
            tuple(selections), tuple(candidates[_pair(neuron)] for neuron in selections[-1].register_neurons)
        )

    def are_gone(self, rule: OutlierRule, gate: GateConfig) -> bool:
        """Whether taking the spikes away is enough, and no neuron has to be moved."""
        return self.processes.share(self._to_select(rule).outcome([]).outlier_ratio <= gate.max_outlier_ratio)

    def to_verify(self, rule: OutlierRule, gate: GateConfig) -> tuple[Intervention, bool]:
        """On images that no stage has seen, if there are any with outliers; and whether one has."""
        intervention = self._to_verify(rule, gate)
        if self.is_split and not intervention.has_outliers:  # nothing to show it on
            return self.intervention("verify", None, rule, gate.num_images), True
        return intervention, not self.is_split

    def verify(
        self, to_verify: Intervention, neurons: Sequence[RegisterNeuron], *, in_sample: bool, gate: GateConfig
    ) -> Verification:
        """On the images of `to_verify`; arguments as in `verification.verify`."""
        return verify(
            to_verify,
            neurons,
            in_sample=in_sample,
            gate=gate,
            inspection=self.constants.inspection,
            pixel_scale=PixelScale.of(self.batches.processor),
            seed=self.config.seed,
            processes=self.processes,
        )

    def measure_constants(
        self, to_verify: Intervention, neurons: Sequence[RegisterNeuron], *, gate: GateConfig
    ) -> tuple[ConstantMode, Tensor]:
        """Rows that are means over images that scored, chosen on those that choose, reported on those that verify."""
        found = measure_constants(
            self.intervention("constants", SCORE, to_verify.rule, _TO_AVERAGE),
            self._to_select(to_verify.rule, stage="constants"),
            to_verify,
            neurons,
            gate=gate,
            tolerated=self.constants.selection.elsewhere,
            seed=self.config.seed,
        )
        return self.processes.share(found)

    def norms(self, images: ImageBatches, tower: VisionTower | None = None) -> tuple[NormStatistics, PatchNorms]:
        """Of these images, over all processes; of the base model by default."""
        shown = self.progress("inspect", images, images.num_images)
        return norms_of(tower or self.tower, shown, self.processes, self.limit, self.photograph_of)

    def _role(self, place: int) -> str:
        return self._roles.role(self.photograph_of(place))

    def _with_role(self, role: str) -> ImageBatches:
        return self.batches.where(lambda place: self._role(place) == role)

    def _to_verify(self, rule: OutlierRule, gate: GateConfig) -> Intervention:
        """So many images that enough photographs have an outlier token, where there are as many."""
        most = gate.num_images
        while True:
            found = self.intervention("verify", VERIFY, rule, most)
            if found.num_photographs_with_outliers >= MIN_VERIFIED or most >= self._count_for(VERIFY):
                return found
            most *= 2

    def _count_for(self, role: str) -> int:
        """Images that a stage could see."""
        places = range(self._count)
        return sum(self._role(place) == role for place in places) if self.is_split else len(places)

    def _to_select(self, rule: OutlierRule, stage: str = "select") -> Intervention:
        most = self.constants.selection.num_images
        intervention = self.intervention(stage, SELECT, rule, most)
        if self.is_split and not intervention.has_outliers:
            return self.intervention(stage, None, rule, most)
        return intervention

    def intervention(self, stage: str, role: str | None, rule: OutlierRule, most: int) -> Intervention:
        """On the first images of a role, or of all for `None`, at most so many; every process has the same."""
        images = self.images_to_move(stage, role, most)
        staying_share = self.constants.inspection.staying_share
        return Intervention(self.tower, images, rule, self.limit, self.options, self.photograph_of, staying_share)

    def images_to_move(self, stage: str, role: str | None, most: int) -> Iterable[Batch]:
        """Those of an intervention."""
        images = (self.batches if role is None else self.images_for(role)).on_every_process()
        return self.progress(stage, images.first(most), min(images.num_images, most))

    def _candidates(
        self, scores: RoundScores, tower: VisionTower, intervention: Intervention
    ) -> dict[tuple[int, int], Candidate]:
        """The best by the paper's score, best first, measured on the images that choose."""
        search, most = scores.search, self.constants.selection.most_neurons
        best = rank_neurons(scores.scores_LF, first_layer=search.first_layer, last_layer=search.last_layer, top_k=most)
        found = measure_candidates(tower, intervention.batches, search.rule, best, limit=self.limit)
        return {_pair(candidate.register_neuron): candidate for candidate in found}

    def _selection(
        self, found: Mapping[tuple[int, int], Candidate], intervention: Intervention, others: Intervention | None
    ) -> Selection:
        """Of these candidates, in their order."""
        for images in filter(None, (intervention, others)):
            images.images_run = 0
        config, budget = self.constants.selection, self.config.budget
        dense = {each.register_neuron for each in found.values() if each.sparsity < 1 - config.few}
        ranked = [each.register_neuron for each in found.values()]
        chosen = select(ranked, intervention, others=others, dense=dense, budget=budget, config=config)
        return self.processes.share(chosen)


def _pair(neuron: RegisterNeuron) -> tuple[int, int]:
    return neuron.layer, neuron.neuron
