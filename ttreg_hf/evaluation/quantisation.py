"""What quantisation costs: how far the features of a quantised model are from those of the unquantised base model.

Letters: `B` images, `N` patches, `D` channels, `M` linear layers, `h`, `w` patches in height and width.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ttreg_hf.applying import add_test_time_registers
from ttreg_hf.evaluation.classification import KnnClassification, training
from ttreg_hf.evaluation.examples import LabelledBatches
from ttreg_hf.evaluation.ground_truth import LABEL, MASK
from ttreg_hf.evaluation.quantisation_scheme import available_schemes, scheme_called, worst_layers
from ttreg_hf.evaluation.rows import KEPT, Row
from ttreg_hf.evaluation.scores import ERROR, Scores, Tally
from ttreg_hf.evaluation.segmentation import AttentionSegmentation
from ttreg_hf.images.batch import Batch
from ttreg_hf.measuring.head_room import FLOAT16_MAX, FP8_MAX, INT8_LEVELS
from ttreg_hf.measuring.linear_ranges import LinearRanges, ranges_of
from ttreg_hf.measuring.norms import NormStatistics, paper_threshold
from ttreg_hf.measuring.recorder import Recorder, Recording
from ttreg_hf.measuring.tower import VisionTower
from ttreg_hf.modeling.modeling_ttreg import TTRegModelMixin

POOLED, ORDINARY = f"{ERROR}, pooled feature", f"{ERROR}, ordinary patches"
OWN_POOLED, OWN_PATCHES = (
    f"{ERROR} to its own unquantised self, pooled",
    f"{ERROR} to its own unquantised self, patches",
)
UNQUANTISED = "not quantised"
_TASKS: dict[str, tuple[Any, str]] = {"knn": (KnnClassification, LABEL), "segmentation": (AttentionSegmentation, MASK)}


@dataclass(frozen=True)
class QuantisationErrors:
    """Error (1 - cosine) of a quantised model's features, and the head-room of its linear layers.

    Static scales are measured on the first training images, everything else on the others. *Ordinary* are patches that
    are no outliers in the base model.

    Args:
        schemes: by name, of `SCHEMES`; none: all that can run here.
        also: tasks that quantised models are measured on too, of `knn` and `segmentation`.
        num_calibration_images: that static scales are measured on, at most.
        detection_layer: block where outliers are detected; `None`: the family's.
        norm_threshold: norm above which a patch is one; `None`: mean + 3 standard deviations on the training images.
    """

    schemes: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    num_calibration_images: int = 64
    detection_layer: int | None = None
    norm_threshold: float | None = None

    name: ClassVar[str] = "quantisation"
    learns: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for scheme in self.schemes:
            scheme_called(scheme)
        if unknown := set(self.also) - set(_TASKS):
            raise ValueError(f"`also` names tasks of {', '.join(_TASKS)}, got {', '.join(sorted(unknown))}.")

    @property
    def truths(self) -> tuple[str, ...]:
        """What the tasks beside it need."""
        return tuple(_TASKS[task][1] for task in self.also)

    @property
    def whole_images(self) -> bool:
        """Whether masks are to fit."""
        return "segmentation" in self.also

    @torch.no_grad()
    def scores(self, row: Row, test: LabelledBatches, train: LabelledBatches | None) -> list[Scores]:
        """Errors by scheme; the base model's also with its worst linear layers in 16 bit, as a row of its own."""
        learned, model = training(self.name, train), row.model
        scaled_by = learned.batches.up_to(self.num_calibration_images)
        own = VisionTower.to_measure(model)
        ranges = ranges_of(own, scaled_by, processes=test.processes)
        base, rule = None, None
        if isinstance(model, TTRegModelMixin):
            base = VisionTower.to_measure(add_test_time_registers(model, []))
            rule = self._rule(base, scaled_by)
        twins = self._twins(own, ranges)
        tally = Tally()
        for batch, _ in test:
            of_base = None if base is None or rule is None else _of_base(base, batch, *rule)
            for name, found in self._recordings(own, twins, batch):
                _add_errors(tally, name, found, of_base, batch.places)
            _add_head_room(tally, own, batch)
        scores = tally.scores(test.processes) + list(self._of_tasks(own, twins, test, learned))
        return [each for found in scores for each in _in_rows(found, is_base=not _has_neurons(model))]

    def _rule(self, base: VisionTower, images: Any) -> tuple[int, float]:
        """Detection block, and the norm above which a patch is an outlier there."""
        layer = base.default_detection_layer if self.detection_layer is None else self.detection_layer
        layer = base.layer("detection_layer", layer)
        if self.norm_threshold is not None:
            return layer, self.norm_threshold
        statistics = NormStatistics(1, base.trunk.device)
        for batch in images:
            statistics.add(_recorded(base, batch, layer).norms_LBT[:, :, base.layout.patches])
        statistics.merge_processes(images.processes)
        return layer, paper_threshold(statistics, 0)

    def _twins(self, own: VisionTower, ranges: LinearRanges) -> dict[str, VisionTower]:
        """By scheme; of a base model those with its worst layers in 16 bit too, marked by `KEPT` behind it."""
        twins = {}
        for name in self.schemes or available_schemes():
            scheme = scheme_called(name)
            twins[name] = VisionTower.of(scheme.quantised(own.model, ranges))
            if not _has_neurons(own.model):
                twins[name + KEPT] = VisionTower.of(scheme.quantised(own.model, ranges, worst_layers(ranges)))
        return twins

    @staticmethod
    def _recordings(
        own: VisionTower, twins: Mapping[str, VisionTower], batch: Batch
    ) -> Iterator[tuple[str, tuple[Recording, Recording]]]:
        """The unquantised model's recording with its own, and with each twin's."""
        unquantised = _recorded(own, batch)
        yield UNQUANTISED, (unquantised, unquantised)
        for name, twin in twins.items():
            yield name, (unquantised, _recorded(twin, batch))

    def _of_tasks(
        self, own: VisionTower, twins: Mapping[str, VisionTower], test: LabelledBatches, train: LabelledBatches
    ) -> Iterator[Scores]:
        for task in self.also:
            for name, tower in {UNQUANTISED: own, **twins}.items():
                for found in _TASKS[task][0]().scores(Row(tower.model), test, train):
                    yield dataclasses.replace(found, setting=name)


def _has_neurons(model: PreTrainedModel) -> bool:
    """Whether it is anything else than a base model."""
    return not isinstance(model, TTRegModelMixin) or model.registers.active


def _in_rows(found: Scores, *, is_base: bool) -> Iterator[Scores]:
    """Scores in their rows: nothing is kept in 16 bit where nothing is quantised, so these stand in both."""
    if found.setting.endswith(KEPT):
        yield dataclasses.replace(found, setting=found.setting.removesuffix(KEPT), row=KEPT)
        return
    yield found
    if is_base and found.setting == UNQUANTISED:
        yield dataclasses.replace(found, row=KEPT)


def _recorded(tower: VisionTower, batch: Batch, layer: int | None = None) -> Recording:
    with Recorder(tower, norm_layers=() if layer is None else [layer], patches=True) as recorder:
        return recorder(batch.pixel_values)


def _of_base(base: VisionTower, batch: Batch, layer: int, threshold: float) -> tuple[Recording, Tensor]:
    """What the base model gives, and which of its patches are ordinary, `(B, N)`."""
    recording = _recorded(base, batch, layer)
    return recording, (recording.norms_LBT[0][:, base.layout.patches] <= threshold).cpu()


def _errors(found: Recording, expected: Recording) -> tuple[Tensor, Tensor]:
    """1 - cosine of the pooled feature `(B,)`, and of every patch `(B, N)`, float64 on the CPU."""
    assert found.feature_BD is not None  # all blocks ran
    assert found.patches_BDhw is not None
    assert expected.feature_BD is not None
    assert expected.patches_BDhw is not None
    pooled_B = 1 - torch.cosine_similarity(found.feature_BD.double(), expected.feature_BD.double(), dim=1)
    patches_Bhw = 1 - torch.cosine_similarity(found.patches_BDhw.double(), expected.patches_BDhw.double(), dim=1)
    return pooled_B.cpu(), patches_Bhw.flatten(1).cpu()


def _add_errors(
    tally: Tally,
    name: str,
    found: tuple[Recording, Recording],
    of_base: tuple[Recording, Tensor] | None,
    places: tuple[int, ...],
) -> None:
    own, quantised = found
    if of_base is not None:
        base, ordinary_BN = of_base
        pooled_B, patches_BN = _errors(quantised, base)
        for row, place in enumerate(places):
            tally.add(POOLED, place, float(pooled_B[row]), setting=name)
            kept_N = ordinary_BN[row]
            tally.add(ORDINARY, place, float(patches_BN[row][kept_N].sum()), float(kept_N.sum()), setting=name)
    if name != UNQUANTISED:
        pooled_B, patches_BN = _errors(quantised, own)
        for row, place in enumerate(places):
            tally.add(OWN_POOLED, place, float(pooled_B[row]), setting=name)
            tally.add(OWN_PATCHES, place, float(patches_BN[row].sum()), float(patches_BN.shape[1]), setting=name)


def _add_head_room(tally: Tally, own: VisionTower, batch: Batch) -> None:
    """Of each image: layers that read or give more than a format holds, and the int8 step over the median input."""
    with LinearRanges(own) as ranges:
        inputs_BM, outputs_BM, medians_BM = ranges.add(batch)
    largest_BM, layers = torch.maximum(inputs_BM, outputs_BM), len(ranges.names)
    steps_B = (inputs_BM / INT8_LEVELS / medians_BM.clamp_min(torch.finfo(torch.float32).tiny)).mean(1)
    for row, place in enumerate(batch.places):
        for name, limit in (("float16's 65,504", FLOAT16_MAX), ("FP8's 448", FP8_MAX)):
            tally.add(f"linear layers above {name}", place, float((largest_BM[row] > limit).sum()), layers)
        tally.add("int8 step of an image / its median input, mean over linear layers", place, float(steps_B[row]))
