"""Linear segmentation: batch norm and a 1 x 1 convolution, learned on frozen patch features.

Features are read once and kept on the CPU. Every step takes the same images whatever the number of processes: each
process adds up the gradient of those that are its own, and one sum makes a step.

Letters: `B` images, `C` classes, `D` channels, `h`, `w` patches in height and width, `H`, `W` a mask's pixels.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ttreg_hf.evaluation.examples import LabelledBatches
from ttreg_hf.evaluation.ground_truth import MASK, Truth, counted_pixels
from ttreg_hf.evaluation.rows import Row
from ttreg_hf.evaluation.scores import Scores, Tally
from ttreg_hf.images.processes import Processes


@dataclass(frozen=True)
class _Lesson:
    """One training image: features `(D, h, w)` in half precision; pixels of each class in each patch `(C, h, w)`."""

    place: int
    features_Dhw: Tensor
    pixels_Chw: Tensor


def pixels_by_patch(mask_HW: Any, grid: tuple[int, int], num_classes: int, ignore_index: int | None) -> Tensor:
    """How many pixels of each class lie in each patch: `(C, h, w)`, float32.

    Cross-entropy against these counts is the pixels' own, of logits that are constant within a patch.
    """
    rows, columns = (np.arange(side) * count // side for side, count in zip(mask_HW.shape, grid, strict=True))
    patches_HW = rows[:, None] * grid[1] + columns[None, :]
    counts = counted_pixels(mask_HW, ignore_index)
    index = mask_HW[counts] * (grid[0] * grid[1]) + patches_HW[counts]
    pixels = np.bincount(index, minlength=num_classes * grid[0] * grid[1])
    return torch.from_numpy(pixels.reshape(num_classes, *grid)).float()


def class_counts(predicted_HW: Tensor, mask_HW: Tensor, num_classes: int, ignore_index: int | None) -> tuple[Any, Any]:
    """Intersections and unions of one image, `(C,)` each, in pixels."""
    counts = torch.from_numpy(counted_pixels(mask_HW.numpy(), ignore_index))
    pairs = num_classes * mask_HW[counts].long() + predicted_HW[counts].long()
    confusion_CC = torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes)
    both_C = confusion_CC.diagonal()
    return both_C.numpy(), (confusion_CC.sum(0) + confusion_CC.sum(1) - both_C).numpy()


@dataclass(frozen=True)
class SegmentationProbe:
    """What a linear layer makes of the patch features.

    Args:
        num_classes: `None`: one more than the largest class in the training masks.
        ignore_index: class of pixels that do not count and are never predicted; 255 by default, `None` for none.
        epochs: how often training goes through the images.
        images_per_step: over all processes.
        learning_rate: of AdamW at the first step; falls linearly to 0.
        seed: of the order of the images.
    """

    num_classes: int | None = None
    ignore_index: int | None = 255
    epochs: int = 10
    images_per_step: int = 16
    learning_rate: float = 1e-2
    seed: int = 0

    name: ClassVar[str] = "segmentation-probe"
    truths: ClassVar[tuple[str, ...]] = (MASK,)
    learns: ClassVar[bool] = True
    whole_images: ClassVar[bool] = True
    is_dense: ClassVar[bool] = True
    hub_task: ClassVar[str] = "image-segmentation"
    hub_metrics: ClassVar[Mapping[str, str]] = {"mIoU": "mean_iou", "pixel accuracy": "pixel_accuracy"}

    def scores(self, row: Row, test: LabelledBatches, train: LabelledBatches | None) -> list[Scores]:
        """mIoU over the classes that occur or are predicted, the primary endpoint, and pixel accuracy.

        Raises:
            ValueError: a class above the largest one that was learned.
        """
        if train is None:
            raise ValueError(
                "The segmentation probe learns from training images, got none. Give `train` (`--train-split`)."
            )
        lessons, num_classes = self._lessons(row, train)
        probe = self._learn(lessons, num_classes, train.processes, row.model.device)
        tally = Tally()
        for patches_BDhw, truths in _final_patches(row, test):
            logits_BChw = self._logits(probe, patches_BDhw)
            for truth, logits_Chw in zip(truths, logits_BChw, strict=True):
                self._check(truth.mask, num_classes, truth.place)
                logits_CHW = nn.functional.interpolate(logits_Chw[None], size=truth.mask.shape, mode="bilinear")[0]
                predicted_HW = logits_CHW.argmax(0).cpu()
                mask_HW = torch.from_numpy(truth.mask)
                both_C, either_C = class_counts(predicted_HW, mask_HW, num_classes, self.ignore_index)
                tally.add("mIoU", truth.place, both_C, either_C)
                pixels = int(counted_pixels(truth.mask, self.ignore_index).sum())
                tally.add("pixel accuracy", truth.place, float(both_C.sum()), pixels)
        return tally.scores(test.processes, primary=("mIoU", ""))

    def _lessons(self, row: Row, train: LabelledBatches) -> tuple[list[_Lesson], int]:
        read: list[tuple[int, Tensor, Any]] = []
        for patches_BDhw, truths in _final_patches(row, train):
            features = patches_BDhw.half().cpu()
            read += [(truth.place, each, truth.mask) for truth, each in zip(truths, features, strict=True)]
        largest = [int(mask[counted_pixels(mask, self.ignore_index)].max(initial=0)) for _, _, mask in read]
        learned = max(train.processes.collect(largest), default=0)
        num_classes = self.num_classes or learned + 1
        lessons = []
        for place, features_Dhw, mask in read:
            self._check(mask, num_classes, place)
            grid = (features_Dhw.shape[1], features_Dhw.shape[2])
            pixels_Chw = pixels_by_patch(mask, grid, num_classes, self.ignore_index)
            lessons.append(_Lesson(place, features_Dhw, pixels_Chw))
        return lessons, num_classes

    def _learn(
        self, lessons: list[_Lesson], num_classes: int, processes: Processes, device: torch.device
    ) -> nn.Module:
        mean_D, variance_D = _moments(lessons, processes, device)
        norm, layer = nn.BatchNorm2d(len(mean_D)), nn.Conv2d(len(mean_D), num_classes, 1)
        norm.running_mean, norm.running_var = mean_D, variance_D  # of all images, not of a batch
        probe = nn.Sequential(norm, layer).to(device).eval()
        parameters = list(layer.parameters())  # the norm's own scale and shift would do nothing that these do not
        for parameter in parameters:
            nn.init.zeros_(parameter)  # convex: nothing has to be drawn, so that every process starts alike
        optimizer = torch.optim.AdamW(parameters, lr=self.learning_rate)
        steps = list(self._steps(sorted(processes.collect([lesson.place for lesson in lessons]))))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / len(steps))
        own = {lesson.place: lesson for lesson in lessons}
        for places in steps:
            mine = [own[place] for place in places if place in own]
            gradients = processes.sum(_gradients(probe, parameters, mine, device))
            for parameter, gradient in zip(
                parameters, gradients[:-1].split([each.numel() for each in parameters]), strict=True
            ):
                parameter.grad = gradient.view_as(parameter) / gradients[-1].clamp(min=1)
            optimizer.step()
            schedule.step()
        return probe

    def _steps(self, places: list[int]) -> list[list[int]]:
        """Places of each step, the same on every process."""
        random, steps = np.random.default_rng(self.seed), []
        for _ in range(self.epochs):
            order = random.permutation(places).tolist()
            steps += [
                order[start : start + self.images_per_step] for start in range(0, len(order), self.images_per_step)
            ]
        return steps

    @torch.no_grad()
    def _logits(self, probe: nn.Module, patches_BDhw: Tensor) -> Tensor:
        logits_BChw = probe(patches_BDhw)
        if self.ignore_index is not None and 0 <= self.ignore_index < logits_BChw.shape[1]:
            logits_BChw[:, self.ignore_index] = -torch.inf
        return logits_BChw

    def _check(self, mask: Any, num_classes: int, place: int) -> None:
        counted = mask[counted_pixels(mask, self.ignore_index)]
        if counted.max(initial=0) >= num_classes:
            raise ValueError(
                f"Masks hold classes from 0 to {num_classes - 1}, but image {place} has {counted.max()}. Give "
                "`num_classes` (`--num-classes`), or `ignore_index` (`--ignore-index`) if these pixels do not count."
            )


def _moments(lessons: list[_Lesson], processes: Processes, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel over all patches of all processes."""
    dimensions = processes.collect([lesson.features_Dhw.shape[0] for lesson in lessons])
    if not dimensions:
        raise ValueError(
            "The segmentation probe needs at least one readable training image, got none. Check `train` "
            "(`--train-split`)."
        )
    sums = torch.zeros(2 * dimensions[0] + 1, dtype=torch.float64, device=device)
    for lesson in lessons:
        features_DN = lesson.features_Dhw.to(device).flatten(1).double()
        parts = (features_DN.sum(1), features_DN.square().sum(1), features_DN.new_tensor([features_DN.shape[1]]))
        sums += torch.cat(parts)
    sums = processes.sum(sums)
    mean_D, square_D = (sums[:-1] / sums[-1]).chunk(2)
    return mean_D.float(), (square_D - mean_D.square()).clamp(min=0).float()


def _gradients(
    probe: nn.Module, parameters: list[nn.Parameter], lessons: list[_Lesson], device: torch.device
) -> Tensor:
    """Gradient of the pixels' summed cross-entropy as one vector, and behind it the number of pixels."""
    gradients = torch.zeros(sum(each.numel() for each in parameters) + 1, device=device)
    for lesson in lessons:  # one by one: grids may differ, and these are small
        pixels_Chw = lesson.pixels_Chw.to(device)
        logits_Chw = probe(lesson.features_Dhw.to(device).float()[None])[0]
        loss = -(pixels_Chw * logits_Chw.log_softmax(0)).sum()
        found = torch.autograd.grad(loss, parameters)
        gradients += torch.cat([*(each.flatten() for each in found), pixels_Chw.sum()[None]])
    return gradients


def _final_patches(row: Row, images: LabelledBatches) -> Iterator[tuple[Tensor, list[Truth]]]:
    """The final patch features `(B, D, h, w)` of each batch, and what is known about its images."""
    with row.recorder(patches=True) as recorder:
        for batch, truths in images:
            patches_BDhw = recorder(batch.pixel_values).patches_BDhw
            assert patches_BDhw is not None  # all blocks ran
            yield patches_BDhw, truths
