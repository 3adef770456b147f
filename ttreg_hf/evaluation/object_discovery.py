"""Object discovery: how often LOST's box is right (CorLoc), for every feature and setting asked for.

Letters: `B` images, `D` channels, `h`, `w` patches in height and width.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from transformers import PreTrainedModel

from ttreg_hf.evaluation.examples import LabelledBatches
from ttreg_hf.evaluation.ground_truth import BOXES
from ttreg_hf.evaluation.scores import Scores, Tally
from ttreg_hf.measuring.recorder import STATES, Recorder
from ttreg_hf.measuring.tower import VisionTower


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
    hub_task: ClassVar[str] = "object-detection"
    hub_metrics: ClassVar[Mapping[str, str]] = {"CorLoc": "corloc"}

    def scores(self, model: PreTrainedModel, test: LabelledBatches, train: LabelledBatches | None) -> list[Scores]:
        """CorLoc of every setting: the share of images whose box overlaps a true one by more than half."""
        from ttreg_hf.evaluation.lost import RIGHT, largest_overlap

        tower, tally = VisionTower.of(model), Tally()
        layers = [tower.layer("layer", layer) for layer in self.layers]
        wanted = list(itertools.product(self.features, layers))
        with Recorder(tower, norm_layers=[], states=wanted) as recorder:
            for batch, truths in test:
                states = recorder(batch.pixel_values).states
                for feature, layer in wanted:
                    maps = tower.layout.patch_map(states[feature, layer], *batch.pixel_values.shape[-2:])
                    for truth, features_Dhw in zip(truths, maps, strict=True):
                        for setting, box in self._boxes(features_Dhw.permute(1, 2, 0)):
                            right = largest_overlap(box, truth.boxes) > RIGHT
                            named = f"{feature}, layer {layer}, {setting}"
                            tally.add("CorLoc", truth.place, float(right), setting=named)
        return tally.scores(test.processes)

    def _boxes(self, features_hwD: Tensor) -> Iterator[tuple[str, tuple[float, float, float, float]]]:
        from ttreg_hf.evaluation.lost import discover_object

        for normalize, bias in itertools.product(self.normalize, self.biases):
            setting = f"{'cosine' if normalize else 'dot product'}, bias {bias:g}"
            yield setting, discover_object(features_hwD, normalize=normalize, bias=bias)
