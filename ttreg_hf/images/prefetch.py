"""Reading what comes next while what came before is worked on."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
_END = object()


def read_ahead(items: Iterator[T], count: int) -> Iterator[T]:
    """The same items, read in a thread, which waits for files and the network, or copies, while others compute.

    Args:
        items: read by that thread alone, until all have come or this iterator is closed.
        count: of items that are read before they are asked for.
    """
    reader = ThreadPoolExecutor(1, thread_name_prefix="read ahead")
    try:
        ahead = deque(reader.submit(next, items, _END) for _ in range(count))
        while (item := ahead.popleft().result()) is not _END:
            ahead.append(reader.submit(next, items, _END))
            yield item  # pyrefly: ignore[invalid-yield]  # not the end
    finally:
        reader.shutdown(cancel_futures=True)
