"""Object discovery: how often LOST's box is right (CorLoc), for every feature and setting asked for.

Letters: `B` images, `D` channels, `h`, `w` patches in height and width.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ttreg_hf.evaluation.examples import LabelledBatches
from ttreg_hf.evaluation.ground_truth import BOXES
from ttreg_hf.evaluation.rows import Row
from ttreg_hf.evaluation.scores import Scores, Tally
from ttreg_hf.measuring.recorder import STATES

CORLOC = "CorLoc"


@dataclass(frozen=True)
class ObjectDiscovery:
    """All combinations of these settings are measured, and all are reported: none is picked.

    Args:
        features: of `key`, `query`, `value` (of the attention, all heads) and `out` (the block's output).
        layers: 0-based; negative ones count from the end.
        normalize: whether similarities are cosines.
        biases: added to every similarity; see `discover_object`.
    """

    features: tuple[str, ...] = STATES
    layers: tuple[int, ...] = (-1,)
    normalize: tuple[bool, ...] = (False, True)
    biases: tuple[float, ...] = (0.0,)

    name: ClassVar[str] = "object-discovery"
    truths: ClassVar[tuple[str, ...]] = (BOXES,)
    learns: ClassVar[bool] = False
    whole_images: ClassVar[bool] = True
    is_dense: ClassVar[bool] = True
    hub_task: ClassVar[str] = "object-detection"
    hub_metrics: ClassVar[Mapping[str, str]] = {CORLOC: "corloc"}

    def scores(self, row: Row, test: LabelledBatches, train: LabelledBatches | None) -> list[Scores]:
        """CorLoc of every setting: the share of images whose box overlaps a true one by more than half.

        Primary is what LOST does: keys of the last layer, dot products, bias 0; all else is exploratory.
        """
        from ttreg_hf.evaluation.lost import RIGHT, largest_overlap

        tower, tally = row.tower, Tally()
        layers = [tower.layer("layer", layer) for layer in self.layers]
        wanted = list(itertools.product(self.features, layers))
        with row.recorder(states=wanted) as recorder:
            for batch, truths in test:
                states = recorder(batch.pixel_values).states
                for feature, layer in wanted:
                    maps = tower.layout.patch_map(states[feature, layer], *batch.pixel_values.shape[-2:])
                    for truth, features_Dhw in zip(truths, maps, strict=True):
                        for setting, box in self._boxes(features_Dhw.permute(1, 2, 0)):
                            right = largest_overlap(box, truth.boxes) > RIGHT
                            tally.add(CORLOC, truth.place, float(right), setting=_named(feature, layer, setting))
        primary = _named("key", tower.num_layers - 1, _setting(normalize=False, bias=0.0))
        return tally.scores(test.processes, primary=(CORLOC, primary))

    def _boxes(self, features_hwD: Tensor) -> Iterator[tuple[str, tuple[float, float, float, float]]]:
        from ttreg_hf.evaluation.lost import discover_object

        for normalize, bias in itertools.product(self.normalize, self.biases):
            box = discover_object(features_hwD, normalize=normalize, bias=bias)
            yield _setting(normalize=normalize, bias=bias), box


def _setting(*, normalize: bool, bias: float) -> str:
    return f"{'cosine' if normalize else 'dot product'}, bias {bias:g}"


def _named(feature: str, layer: int, setting: str) -> str:
    return f"{feature}, layer {layer}, {setting}"
