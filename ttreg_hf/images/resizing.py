"""The same images at another size, as their processor would make them."""

import functools
from typing import Any

_SIZES = ("size", "crop_size")


def resized_processor(processor: Any, size: tuple[int, int], given: tuple[int, int]) -> Any:
    """A processor that gives images of another size, with all lengths of its settings in proportion.

    Args:
        processor: a transformers image processor; `None`, and what has no such settings, stays as it is.
        size: height and width that are wanted, in pixels.
        given: height and width that the processor gives.
    """
    factors = {"height": size[0] / given[0], "width": size[1] / given[1]}
    larger = max(factors.values())
    given_settings = processor.to_dict() if hasattr(processor, "to_dict") else {}
    settings = {name: lengths for name, lengths in given_settings.items() if name in _SIZES and lengths}
    changed = {
        name: {side: round(length * factors.get(side, larger)) for side, length in lengths.items()}
        for name, lengths in settings.items()
    }
    return functools.partial(processor, **changed) if changed else processor
