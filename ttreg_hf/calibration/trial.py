"""Tries neurons out: patches the model with them and measures it on the same images as the base model."""

from collections.abc import Callable, Iterable, Sequence

from transformers import PreTrainedModel

from ttreg_hf.applying import add_test_time_registers
from ttreg_hf.calibration.batch_limit import BatchLimit
from ttreg_hf.calibration.batches import Batch
from ttreg_hf.calibration.verification import Measured, Verification, compare, measure
from ttreg_hf.register_neuron import RegisterNeuron

_GONE = 0.01  # of the outlier tokens may stay for them to count as gone


class Trial:
    """A base model on some images, and any number of patched twins on the same images.

    Args:
        model: the base model.
        batches: what to measure on, gone through once a trial.
        detection_layer: block whose output shows the outliers.
        norm_threshold: in that block's units.
        limit: how many images go through a model at once.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        batches: Iterable[Batch],
        *,
        detection_layer: int,
        norm_threshold: float,
        limit: BatchLimit | None = None,
    ) -> None:
        self.model, self.batches, self.limit = model, batches, limit
        self.detection_layer, self.norm_threshold = detection_layer, norm_threshold
        self.before = self._measure(model)

    def verify(self, neurons: Sequence[RegisterNeuron], *, in_sample: bool) -> Verification:
        """Base against patched."""
        return compare(self.before, self._after(neurons), in_sample=in_sample)

    def enough(self, ranked: Sequence[RegisterNeuron]) -> int:
        """How many of the ranked neurons it takes until the outliers are gone, or else until fewest are left."""
        tried: dict[int, float] = {}

        def is_enough(count: int) -> bool:
            tried[count] = self._after(ranked[:count]).outlier_fraction
            return tried[count] <= _GONE * self.before.outlier_fraction

        return smallest_count(is_enough, len(ranked)) or min(tried, key=lambda count: (tried[count], count))

    def _after(self, neurons: Sequence[RegisterNeuron]) -> Measured:
        return self._measure(add_test_time_registers(self.model, neurons))

    def _measure(self, model: PreTrainedModel) -> Measured:
        return measure(
            model,
            self.batches,
            detection_layer=self.detection_layer,
            norm_threshold=self.norm_threshold,
            limit=self.limit,
        )


def smallest_count(is_enough: Callable[[int], bool], limit: int) -> int | None:
    """The smallest count up to a limit that is enough, by doubling and bisection; `None` if the limit is not.

    Takes it that a larger count stays enough, so a few checks do.
    """
    low, high = 0, 1
    while not is_enough(high):
        if high == limit:
            return None
        low, high = high, min(2 * high, limit)
    while high - low > 1:
        middle = (low + high) // 2
        if is_enough(middle):
            high = middle
        else:
            low = middle
    return high
