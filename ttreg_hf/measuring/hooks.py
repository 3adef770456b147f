"""Forward hooks that are gone when what needed them is over, after a failure too."""

from types import TracebackType
from typing import Any


class Hooks:
    """A context manager whose `__enter__` fills `_handles` with those of the hooks that it registers."""

    def __init__(self) -> None:
        self._handles: list[Any] = []

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
