"""Calibrations of one model without one step each. What two do alike is done once, and timed as if it were not.

What a stage does is decided by what it is given, so a stage that is given the same again has the same result.
"""

import copy
import dataclasses
import functools
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, TypeVar

from torch import Tensor

from benchmarks.selection_steps import settings_without
from ttreg_hf.calibration.calibration_result import CalibrationResult
from ttreg_hf.calibration.calibration_run import run_stages
from ttreg_hf.calibration.config import GateConfig
from ttreg_hf.calibration.constant_mode import ConstantMode
from ttreg_hf.calibration.inputs import Inputs
from ttreg_hf.calibration.inspection import Inspection
from ttreg_hf.calibration.rounds import RoundScores
from ttreg_hf.calibration.search import search_of
from ttreg_hf.calibration.stages import Stages
from ttreg_hf.calibration.verification import Verification
from ttreg_hf.images.batches import Batch, ImageBatches
from ttreg_hf.images.data_source import DataSource
from ttreg_hf.images.progress import say_nothing, silent
from ttreg_hf.measuring.intervention import Intervention, Outcome
from ttreg_hf.measuring.measurement import Measurement
from ttreg_hf.measuring.norms import NormStatistics
from ttreg_hf.measuring.outlier_rule import OutlierRule
from ttreg_hf.measuring.patch_norms import PatchNorms
from ttreg_hf.measuring.tower import VisionTower
from ttreg_hf.register_neuron import RegisterNeuron

Result = TypeVar("Result")


class Memory:
    """What was computed of one model, and how long that took. `saved` adds up the seconds that it spared."""

    def __init__(self) -> None:
        self.saved = 0.0
        self._known: dict[Hashable, tuple[Any, float]] = {}

    def recall(self, key: Hashable, compute: Callable[[], Result]) -> Result:
        """What was computed under this key, or is now."""
        if key in self._known:
            found, seconds = self._known[key]
            self.saved += seconds
            return found
        clock = self.clock()
        found = compute()
        self._known[key] = found, self.clock() - clock
        return found

    def clock(self) -> float:
        """In seconds, as if nothing were recalled."""
        return time.perf_counter() + self.saved


class _Intervention(Intervention):
    """Remembers what sets of neurons do; each counts as a pass of all images, as if it were run."""

    def __init__(self, memory: Memory, key: Hashable, *args: Any) -> None:
        super().__init__(*args)
        self._memory, self._key = memory, key

    def on_few(self, most: int) -> Intervention:
        return self._memory.recall((self._key, "few", most), functools.partial(super().on_few, most))

    def on_others(self, batches: Iterable[Batch]) -> Intervention:
        batches = list(batches)
        places = tuple(place for batch in batches for place in batch.places)
        key = self._key, places
        options = self.limit, self.options, self.photograph_of, self.staying_share
        return _Intervention(self._memory, key, self.tower, batches, self.rule, *options)

    def after(
        self, neurons: Sequence[RegisterNeuron], *, shift_value: str = "per_neuron", shift_scale: float | None = None
    ) -> Measurement:
        compute = functools.partial(super().after, neurons, shift_value=shift_value, shift_scale=shift_scale)
        if len(neurons) != 1:
            return compute()
        return self._once(("after", _pair(neurons[0]), shift_value, shift_scale), compute)

    def outcome(
        self, neurons: Sequence[RegisterNeuron], *, shift_value: str = "per_neuron", shift_scale: float | None = None
    ) -> Outcome:
        compute = functools.partial(super().outcome, neurons, shift_value=shift_value, shift_scale=shift_scale)
        return self._once(("outcome", frozenset(map(_pair, neurons)), shift_value, shift_scale), compute)

    def _once(self, key: Hashable, compute: Callable[[], Result]) -> Result:
        images_run = self.images_run
        found = self._memory.recall((self._key, key), compute)
        self.images_run = images_run + self.before.num_images
        return found


class TrialStages(Stages):
    """The stages of a calibration, which remember what earlier ones did on the same model and images.

    Args:
        inputs: of this calibration.
        memory: of all calibrations of this model.
    """

    def __init__(self, inputs: Inputs, memory: Memory) -> None:
        super().__init__(inputs, silent, say_nothing)
        self._memory = memory

    def norms(self, images: ImageBatches, tower: VisionTower | None = None) -> tuple[NormStatistics, PatchNorms]:
        compute = super().norms
        if tower is not None:
            return compute(images, tower)
        places = [place for place in range(images.num_images) if images.keep is None or images.keep(place)]
        found = self._memory.recall(("norms", images.size, *places), lambda: compute(images))
        return copy.deepcopy(found)  # whoever asks adds to them

    def score(self, inspection: Inspection, tower: VisionTower | None = None, **options: Any) -> RoundScores:
        compute = super().score
        if tower is not None:
            return compute(inspection, tower, **options)
        key = "score", search_of(self.config, inspection)
        return self._memory.recall(key, lambda: compute(inspection, **options))

    def intervention(self, stage: str, role: str | None, rule: OutlierRule, most: int) -> Intervention:
        staying_share = self.constants.inspection.staying_share
        key = "intervention", role, rule, most, staying_share, self.fixed_positions

        def make() -> Intervention:
            images = self.images_to_move(stage, role, most)
            options = self.limit, self.options, self.photograph_of, staying_share
            return _Intervention(self._memory, key, self.tower, images, rule, *options)

        return self._memory.recall(key, make)

    def verify(
        self, to_verify: Intervention, neurons: Sequence[RegisterNeuron], *, in_sample: bool, gate: GateConfig
    ) -> Verification:
        compute, constants = super().verify, self.constants.inspection
        read = constants.populations, constants.content_share, constants.staying_share
        key = "verify", tuple(map(_pair, neurons)), to_verify.rule, self.fixed_positions, in_sample, gate, read
        return self._memory.recall(key, lambda: compute(to_verify, neurons, in_sample=in_sample, gate=gate))

    def measure_constants(
        self, to_verify: Intervention, neurons: Sequence[RegisterNeuron], *, gate: GateConfig
    ) -> tuple[ConstantMode, Tensor]:
        compute = super().measure_constants
        key = "constants", tuple(map(_pair, neurons)), to_verify.rule, self.fixed_positions, gate
        return self._memory.recall(key, lambda: compute(to_verify, neurons, gate=gate))


def calibrated_without(
    step: str, inputs: Inputs, source: DataSource, memory: Memory
) -> tuple[CalibrationResult, float]:
    """A calibration without a step, and the seconds that it takes by itself.

    Args:
        step: its name in `STEPS`; empty for the whole calibration.
        inputs: the model and its images, open.
        source: of the images.
        memory: of this model and these images.
    """
    settings = settings_without(step, inputs.config)
    start = memory.clock()
    stages = TrialStages(dataclasses.replace(inputs, config=settings.config, constants=settings.constants), memory)
    return run_stages(stages, source, gate=settings.gate), memory.clock() - start


def _pair(neuron: RegisterNeuron) -> tuple[int, int]:
    return neuron.layer, neuron.neuron
