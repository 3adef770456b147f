"""How an evaluation is run."""

from dataclasses import dataclass

from ttreg_hf.evaluation.rows import ROWS
from ttreg_hf.evaluation.whole_image import ORIGINAL
from ttreg_hf.records import check_types


@dataclass(frozen=True)
class EvaluationConfig:
    """How much is measured, and how sure it is.

    Args:
        num_images: the first ones of the data set, at most.
        num_training_images: likewise, where a task learns.
        batch_size: images in a forward pass.
        image_size: height and width in pixels that whole images are resized to; `None`: the model's own; `"original"`:
            each image's, rounded to whole patches, one image at a time. Classification takes the checkpoint's own
            preprocessing unless it is given.
        resamples: of the images, for the intervals.
        confidence: of the intervals.
        seed: of random neurons and intervals.
        workers: processes that decode; `None`: by device and cores.
        max_bad_share: unreadable images to skip before stopping, as a share.
        rows: which are measured beside the base model, of `ROWS`; `None`: all that there can be.
    """

    num_images: int = 10_000
    num_training_images: int = 10_000
    batch_size: int = 16
    image_size: int | str | None = None
    resamples: int = 1000
    confidence: float = 0.95
    seed: int = 0
    workers: int | None = None
    max_bad_share: float = 0.01
    rows: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("num_images", "num_training_images", "batch_size", "resamples"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is 1 or more, got {getattr(self, name)}.")
        if not 0 < self.confidence < 1:
            raise ValueError(f"`confidence` is between 0 and 1, got {self.confidence}.")
        size = self.image_size
        if not (size is None or size == ORIGINAL or (isinstance(size, int) and size > 0)):
            raise ValueError(f"`image_size` is a number of pixels or {ORIGINAL!r}, got {size!r}.")
        for row in self.rows or ():
            if row not in ROWS:
                raise ValueError(f"`rows` are some of {'; '.join(ROWS)}; got {row!r}.")
