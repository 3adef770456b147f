"""An image that is left out, counted and named."""

from dataclasses import dataclass


@dataclass(frozen=True)
class BadImage:
    """An image that could not be read.

    Args:
        key: its path, or its place in the order.
        reason: what is wrong with it.
    """

    key: str
    reason: str

    @classmethod
    def of(cls, key: str, error: Exception) -> "BadImage":
        """One of which this was raised."""
        return cls(key, f"{type(error).__name__}: {error}"[:200])
