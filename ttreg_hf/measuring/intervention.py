"""Moves neurons and measures what that does: a base model and patched twins on the same images."""

import copy
import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ttreg_hf.applying import NOWHERE
from ttreg_hf.images.batches import Batch
from ttreg_hf.measuring.batch_limit import BatchLimit
from ttreg_hf.measuring.measurement import Measurement, measure
from ttreg_hf.measuring.outlier_rule import OutlierRule
from ttreg_hf.measuring.patched_twin import PatchedTwin
from ttreg_hf.measuring.photographs import PhotographOf, own_photograph
from ttreg_hf.measuring.population_config import STAYING_SHARE
from ttreg_hf.measuring.position_report import Place
from ttreg_hf.measuring.table_spikes import moved_nowhere
from ttreg_hf.measuring.tower import VisionTower
from ttreg_hf.register_neuron import RegisterNeuron


@dataclass(frozen=True)
class Outcome:
    """What patching did.

    Args:
        outlier_ratio: outliers after / before; 1 where there were none, because then nothing was shown to work.
        feature_similarity: mean cosine of the pooled feature to the base model's.
    """

    outlier_ratio: float
    feature_similarity: float


class Intervention:
    """A base model on some images, and any number of patched twins on the same images.

    Args:
        tower: of the base model.
        batches: what to measure on; kept, and gone through once a set of neurons.
        rule: which tokens are outliers.
        limit: how many images go through a model at once.
        options: of `add_test_time_registers`, for all twins: those that a checkpoint was published with.
        photograph_of: from an image's place to its photograph.
        staying_share: of its excess, for an outlier to stay one when patched.
    """

    def __init__(
        self,
        tower: VisionTower,
        batches: Iterable[Batch],
        rule: OutlierRule,
        limit: BatchLimit | None = None,
        options: Mapping[str, Any] | None = None,
        photograph_of: PhotographOf = own_photograph,
        staying_share: float = STAYING_SHARE,
    ) -> None:
        self.tower, self.batches, self.rule, self.limit = tower, list(batches), rule, limit or BatchLimit()
        self.options, self.photograph_of, self.staying_share = dict(options or {}), photograph_of, staying_share
        self.before = measure(tower, self.batches, rule, limit=self.limit, photograph_of=photograph_of)
        self.images_run = self.before.num_images

    @property
    def num_outliers(self) -> int:
        """Of the base model, on these images."""
        return int(self.before.outliers_B.sum())

    @property
    def num_photographs_with_outliers(self) -> int:
        """In which the base model has one."""
        return int((self.before.outliers_U > 0).sum())

    @property
    def has_outliers(self) -> bool:
        """Whether the base model has any on these images."""
        return self.num_outliers > 0

    def on_few(self, most: int) -> "Intervention":
        """The same on the first images that have outliers, at most so many; itself, if none has."""
        if not self.has_outliers:
            return self
        left, batches = most, []
        counts = iter(self.before.outliers_B.tolist())
        for batch in self.batches:
            rows = [row for row, count in enumerate(itertools.islice(counts, len(batch))) if count > 0][:left]
            left -= len(rows)
            if rows:
                batches.append(batch.only(rows))
        return self.on_others(batches)

    def on_others(self, batches: Iterable[Batch]) -> "Intervention":
        """The same on other images."""
        return Intervention(
            self.tower, batches, self.rule, self.limit, self.options, self.photograph_of, self.staying_share
        )

    @property
    def fixed_positions(self) -> tuple[Place, ...]:
        """Spikes of the position table that all twins take away."""
        return tuple((row, column) for row, column in self.options.get("fixed_positions", ()))

    def taking(self, fixed_positions: Sequence[Place]) -> "Intervention":
        """The same base model on the same images, with twins that take away these spikes instead."""
        other = copy.copy(self)
        other.__dict__.pop("_twin", None)
        other.options = {**self.options, "fixed_positions": [list(place) for place in fixed_positions]}
        return other

    def nowhere(self, neurons: Sequence[RegisterNeuron], *, shift_value: str) -> VisionTower:
        """A twin that takes the same away and moves it nowhere: neurons are zeroed, the extra token is empty."""
        return moved_nowhere(self.tower, neurons, {**self.options, "shift_value": shift_value, **NOWHERE})

    @functools.cached_property
    def _twin(self) -> PatchedTwin:
        return PatchedTwin(self.tower, self.options)

    def patched(self, neurons: Sequence[RegisterNeuron], **options: Any) -> VisionTower:
        """A twin to keep, with these options over those of all twins; shares the base model's weights."""
        return self.tower.patched(neurons, **self.options | options)

    def measure(self, tower: VisionTower) -> Measurement:
        """A twin on these images."""
        self.images_run += self.before.num_images
        return measure(
            tower, self.batches, self.rule, limit=self.limit, base=self.before, staying_share=self.staying_share
        )

    def after(
        self, neurons: Sequence[RegisterNeuron], *, shift_value: str = "per_neuron", shift_scale: float | None = None
    ) -> Measurement:
        """The patched model on these images."""
        return self.measure(self._twin.moving(neurons, shift_value=shift_value, shift_scale=shift_scale))

    def outcome(
        self, neurons: Sequence[RegisterNeuron], *, shift_value: str = "per_neuron", shift_scale: float | None = None
    ) -> Outcome:
        """What patching does to these images."""
        return self.compared(self.after(neurons, shift_value=shift_value, shift_scale=shift_scale))

    def compared(self, after: Measurement) -> Outcome:
        """Outliers and features of a patched model, seen from the base model."""
        before = self.num_outliers
        return Outcome(
            outlier_ratio=float(after.outliers_B.sum()) / before if before else 1.0,
            feature_similarity=float(after.similarity_to(self.before).mean()),
        )
