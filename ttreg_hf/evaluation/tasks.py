"""The tasks by name, and what a task is."""

from typing import Any, ClassVar, Protocol

from ttreg_hf.evaluation.classification import KnnClassification, LinearClassification, ZeroShotClassification
from ttreg_hf.evaluation.examples import LabelledBatches
from ttreg_hf.evaluation.object_discovery import ObjectDiscovery
from ttreg_hf.evaluation.quantisation import QuantisationErrors
from ttreg_hf.evaluation.rows import Row
from ttreg_hf.evaluation.scores import Scores
from ttreg_hf.evaluation.segmentation import AttentionSegmentation
from ttreg_hf.evaluation.segmentation_probe import SegmentationProbe
from ttreg_hf.evaluation.token_probe import TokenProbe


class Task(Protocol):
    """A dataclass of settings that can measure a model, as a row of a table reads it.

    Args:
        name: in commands and files.
        truths: what it needs to know about images, of `mask`, `boxes` and `label`.
        learns: whether it needs training images.
        whole_images: whether it sees whole images, resized, and not what the checkpoint's processor crops.

    `truths` and `whole_images` may be properties, where they depend on the settings.

    A task whose figures shall stand in the metadata of a model card also has `hub_task`, such as
    `"image-classification"`, and `hub_metrics`, which says what the Hub calls its metrics: `{"top-1": "accuracy"}`.
    A dense task, which reads features of single patches, so that they can be mended by hand, has `is_dense = True`.
    """

    name: ClassVar[str]
    truths: ClassVar[tuple[str, ...]]
    learns: ClassVar[bool]
    whole_images: ClassVar[bool]

    def scores(self, row: Row, test: LabelledBatches, train: LabelledBatches | None) -> list[Scores]:
        """All metrics of one row, of all processes' images, on every process."""


TASKS: dict[str, Any] = {
    task.name: task
    for task in (
        ObjectDiscovery,
        AttentionSegmentation,
        SegmentationProbe,
        KnnClassification,
        LinearClassification,
        ZeroShotClassification,
        TokenProbe,
        QuantisationErrors,
    )
}


def task_called(name: str) -> Task:
    """A task with its default settings.

    Raises:
        ValueError: there is none of this name.
    """
    if name not in TASKS:
        raise ValueError(f"`task` is one of {', '.join(TASKS)}, or such an object, got {name!r}.")
    return TASKS[name]()
