"""A thread that reads ahead: all items in order, no more than asked for, errors where they belong, a clean end."""

import threading
from collections.abc import Iterator

import pytest

from ttreg_hf.images.prefetch import read_ahead


class _Counted(Iterator[int]):
    """Counts up; knows how far it was read and in which threads."""

    def __init__(self, end: int, fails_at: int | None = None) -> None:
        self.end, self.fails_at, self.count, self.threads = end, fails_at, 0, set()

    def __next__(self) -> int:
        self.threads.add(threading.current_thread().name)
        if self.count == self.fails_at:
            raise OSError("the disk is gone")
        if self.count >= self.end:
            raise StopIteration
        self.count += 1
        return self.count


@pytest.mark.parametrize("end", [0, 1, 3, 4, 50])
def test_all_items_come_in_order_from_one_other_thread(end):
    items = _Counted(end)
    assert list(read_ahead(items, 4)) == list(range(1, end + 1))
    assert items.threads == {"read ahead_0"}


def test_nothing_is_read_before_the_first_is_asked_for():
    items = _Counted(50)
    ahead = read_ahead(items, 4)
    assert items.count == 0
    assert next(ahead) == 1
    ahead.close()


def test_closed_early_it_has_read_only_what_was_ahead_and_its_thread_has_ended():
    items = _Counted(50)
    ahead = read_ahead(items, 4)
    assert [next(ahead), next(ahead)] == [1, 2]
    ahead.close()
    assert 2 <= items.count <= 6
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read ahead")]


def test_an_error_comes_after_the_items_before_it():
    ahead = read_ahead(_Counted(50, fails_at=3), 4)
    assert [next(ahead) for _ in range(3)] == [1, 2, 3]
    with pytest.raises(OSError, match="the disk is gone"):
        next(ahead)
