"""What single tokens know about the whole image: a linear probe of CLS, patches, outlier tokens and the register.

Letters: `B` images, `T` tokens, `N` patches, `D` channels.

Source: Jiang et al. 2025 (arXiv 2506.08010), table 1: a test-time register holds the global information that outlier
tokens held.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ttreg_hf.evaluation.classification import classified, gathered, linear_classes, on_first_process, training
from ttreg_hf.evaluation.examples import LabelledBatches
from ttreg_hf.evaluation.ground_truth import LABEL
from ttreg_hf.evaluation.rows import Row
from ttreg_hf.evaluation.scores import Scores
from ttreg_hf.measuring.recorder import BLOCK_OUTPUT
from ttreg_hf.modeling.registers import TokenLayout

CLS, RANDOM, LARGEST, REGISTER = "CLS", "random patch", "largest-norm patch", "test-time register"


def pick_tokens(
    layout: TokenLayout, states_BTD: Tensor, norms_BT: Tensor, places: tuple[int, ...], seed: int
) -> dict[str, Tensor]:
    """One token of each kind that there is, `(B, D)` each.

    Args:
        layout: of the tokens.
        states_BTD: the tokens to pick from.
        norms_BT: by which the outlier token is detected: the patch of largest norm.
        places: of the images; the random patch depends on place and seed alone, so that rows see the same one.
        seed: of the random patches.
    """
    patches_BND, every = states_BTD[:, layout.patches], torch.arange(len(states_BTD), device=states_BTD.device)
    drawn = [int(np.random.default_rng([seed, place]).integers(patches_BND.shape[1])) for place in places]
    picked = {
        RANDOM: patches_BND[every, torch.tensor(drawn, device=every.device)],
        LARGEST: patches_BND[every, norms_BT[:, layout.patches].argmax(1)],
    }
    if layout.num_prefix_tokens:
        picked = {CLS: states_BTD[:, layout.prefix][:, 0], **picked}
    if layout.num_test_time_registers:
        picked[REGISTER] = states_BTD[:, layout.registers].mean(1)
    return picked


def kinds_of_tokens(layout: TokenLayout) -> list[str]:
    """The kinds that a model with this layout has."""
    there = {CLS: layout.num_prefix_tokens, RANDOM: 1, LARGEST: 1, REGISTER: layout.num_test_time_registers}
    return [kind for kind, count in there.items() if count]


@dataclass(frozen=True)
class TokenProbe:
    """Logistic regression on single tokens of a block's raw output.

    Args:
        layer: whose output is probed; -1 is the last.
        detection_layer: whose output's norms tell the outlier token; `None`: where the family's are seen best.
        regularization: weight of the squared coefficients.
        seed: of the random patches.
    """

    layer: int = -1
    detection_layer: int | None = None
    regularization: float = 1.0
    seed: int = 0

    name: ClassVar[str] = "token-probe"
    truths: ClassVar[tuple[str, ...]] = (LABEL,)
    learns: ClassVar[bool] = True
    whole_images: ClassVar[bool] = False
    hub_task: ClassVar[str] = "image-classification"
    hub_metrics: ClassVar[Mapping[str, str]] = {"top-1": "accuracy"}

    def scores(self, row: Row, test: LabelledBatches, train: LabelledBatches | None) -> list[Scores]:
        """Top-1 accuracy of each kind of token that the model has."""
        known, asked = (self._read(row, images) for images in (training(self.name, train), test))
        found = []
        for kind in known:
            learned, tested = gathered(test, known[kind]), gathered(test, asked[kind])
            classes = on_first_process(
                test,
                lambda: linear_classes(learned, tested, regularization=self.regularization),  # noqa: B023
            )
            scores = classified("top-1", classes, tested)
            found.append(Scores(scores.metric, kind, scores.places, scores.numerators_BC, scores.denominators_BC))
        return found

    def _read(self, row: Row, images: LabelledBatches) -> dict[str, list[tuple[int, Any, int | None]]]:
        tower = row.tower
        found: dict[str, list[tuple[int, Any, int | None]]] = {kind: [] for kind in kinds_of_tokens(tower.layout)}
        detection_layer, probed = tower.default_detection_layer, (BLOCK_OUTPUT, tower.layer("layer", self.layer))
        if self.detection_layer is not None:
            detection_layer = tower.layer("detection_layer", self.detection_layer)
        with row.recorder(norm_layers=[detection_layer], states=[probed]) as recorder:
            for batch, truths in images:
                recording = recorder(batch.pixel_values)
                states_BTD, norms_BT = recording.states[probed], recording.norms_LBT[0]
                picked = pick_tokens(tower.layout, states_BTD, norms_BT, batch.places, self.seed)
                for kind, token_BD in picked.items():
                    rows = zip(truths, token_BD.cpu().numpy(), strict=True)
                    found[kind] += [(truth.place, each, truth.label) for truth, each in rows]
        return found
