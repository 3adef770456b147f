"""How long work says how far it is, and takes lines for people; both do nothing unless somebody wants them."""

from collections.abc import Callable, Iterable

from ttreg_hf.images.batches import Batch

Progress = Callable[[str, Iterable[Batch], int], Iterable[Batch]]
"""Shows how far a stage is: `(name, batches, number of images)` -> the same batches."""

Say = Callable[[str], None]
"""Takes a line for people."""


def silent(stage: str, batches: Iterable[Batch], num_images: int) -> Iterable[Batch]:
    """Shows no progress."""
    return batches


def say_nothing(line: str) -> None:
    """Takes a line for people, and drops it."""
