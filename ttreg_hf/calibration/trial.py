"""Tries neurons out: patches the model with them and measures it on the same images as the base model."""

import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from ttreg_hf.applying import add_test_time_registers
from ttreg_hf.calibration.batch_limit import BatchLimit
from ttreg_hf.calibration.batches import Batch
from ttreg_hf.calibration.changing_twin import ChangingTwin
from ttreg_hf.calibration.measuring import Measured, measure
from ttreg_hf.calibration.outliers import OutlierRule
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


class Trial:
    """A base model on some images, and any number of patched twins on the same images.

    Args:
        model: the base model.
        batches: what to measure on; kept, and gone through once a trial.
        rule: which tokens are outliers.
        limit: how many images go through a model at once.
        options: of `add_test_time_registers`, for all twins: those that a checkpoint was published with.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        batches: Iterable[Batch],
        rule: OutlierRule,
        limit: BatchLimit | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.model, self.batches, self.rule, self.limit = model, list(batches), rule, limit
        self.options = dict(options or {})
        self.before = measure(model, self.batches, rule, limit=limit)
        self.images_run = self.before.num_images

    @property
    def num_outliers(self) -> int:
        """Of the base model, on these images."""
        return int(self.before.outliers_B.sum())

    @property
    def has_outliers(self) -> bool:
        """Whether the base model has any on these images."""
        return self.num_outliers > 0

    def on_few(self, most: int) -> "Trial":
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
        return Trial(self.model, batches, self.rule, self.limit, self.options)

    @functools.cached_property
    def _twin(self) -> ChangingTwin:
        return ChangingTwin(self.model, self.options)

    def patched(self, neurons: Sequence[RegisterNeuron], *, shift_value: str = "per_neuron") -> PreTrainedModel:
        """A twin to keep; shares the base model's weights."""
        return add_test_time_registers(self.model, neurons, **self.options | {"shift_value": shift_value})

    def measure(self, model: PreTrainedModel) -> Measured:
        """A twin on these images."""
        self.images_run += self.before.num_images
        return measure(model, self.batches, self.rule, limit=self.limit, base=self.before)

    def after(
        self, neurons: Sequence[RegisterNeuron], *, shift_value: str = "per_neuron", shift_scale: float | None = None
    ) -> Measured:
        """The patched model on these images."""
        return self.measure(self._twin.moving(neurons, shift_value=shift_value, shift_scale=shift_scale))

    def outcome(
        self, neurons: Sequence[RegisterNeuron], *, shift_value: str = "per_neuron", shift_scale: float | None = None
    ) -> Outcome:
        """What patching does to these images."""
        return self.compared(self.after(neurons, shift_value=shift_value, shift_scale=shift_scale))

    def compared(self, after: Measured) -> Outcome:
        """Outliers and features of a patched model, seen from the base model."""
        before = self.num_outliers
        return Outcome(
            outlier_ratio=float(after.outliers_B.sum()) / before if before else 1.0,
            feature_similarity=float(after.similarity_to(self.before).mean()),
        )
