"""How far a long stage is, on stderr: bars on a terminal, elsewhere a line now and then. Only rank 0 shows it."""

import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from ttreg_hf.cli.printer import is_first_rank, stderr_is_terminal

SECONDS_BETWEEN_LINES = 10.0
_SECONDS_BETWEEN_STATUS = 2.0  # asking for it makes the device wait
Show = Callable[[str, Iterable[Any], int], Iterable[Any]]


class _Display(Protocol):
    """Where progress is shown."""

    def start(self, stage: str, total: int, status: Callable[[], str] | None) -> None:
        """A stage begins; `status` asks for what was found so far."""

    def update(self, done: int, rate: float) -> None:
        """So many images of it are done, so many a second."""

    def end(self, done: int) -> None:
        """The stage has ended after so many images."""


@contextmanager
def progress_bars(available: int | None = None) -> Generator[Show]:
    """Shows images, speed, time left and what was found, stage by stage; nothing on other ranks than the first.

    Args:
        available: how many images there are, if that is known.
    """
    if not is_first_rank():
        yield lambda stage, batches, num_images: batches
    elif stderr_is_terminal():
        with _bars() as display:
            yield _shown_on(display, available)
    else:
        yield _shown_on(_Lines(), available)


def _shown_on(display: _Display, available: int | None) -> Show:
    def show(stage: str, batches: Iterable[Any], num_images: int) -> Iterator[Any]:
        total = num_images if available is None else min(num_images, available)
        display.start(stage, total, getattr(batches, "status", None))
        done, start = 0, time.monotonic()
        for batch in batches:
            yield batch
            done += len(batch)
            display.update(done, done / max(time.monotonic() - start, 1e-9))
        display.end(done)

    return show


class _Lines:
    """A line every ten seconds, for logs: `score: 320 of 500 images, 12.3/s, about 15 s left`."""

    def __init__(self) -> None:
        self._said_at = time.monotonic()  # over all stages, of which many are short

    def start(self, stage: str, total: int, status: Callable[[], str] | None) -> None:
        self._stage, self._total, self._status = stage, total, status

    def update(self, done: int, rate: float) -> None:
        if time.monotonic() - self._said_at < SECONDS_BETWEEN_LINES:
            return
        self._said_at = time.monotonic()
        left = time_left(max(self._total - done, 0) / rate)
        found = self._status() if self._status is not None else ""
        line = f"{self._stage}: {done} of {self._total} images, {rate:.3g}/s, about {left} left"
        print(f"{line}, {found}" if found else line, file=sys.stderr, flush=True)

    def end(self, done: int) -> None:
        """Nothing: the next stage speaks for itself."""


def time_left(seconds: float) -> str:
    """Such as `40 s`, `12 min` and `2 h 5 min`."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


@contextmanager
def _bars() -> Generator[_Display]:
    """One bar a stage, gone when the work is done."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    bars = Progress(
        TextColumn("{task.description:<8}"),
        BarColumn(bar_width=10),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}/s"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[status]}"),
        console=Console(stderr=True),
        transient=True,
    )

    class Bars:
        def start(self, stage: str, total: int, status: Callable[[], str] | None) -> None:
            self._task = bars.add_task(stage, total=total, speed="-", status="")
            self._status, self._asked_at = status, 0.0

        def update(self, done: int, rate: float) -> None:
            bars.update(self._task, completed=done, speed=f"{rate:.0f}")
            if self._status is not None and time.monotonic() - self._asked_at > _SECONDS_BETWEEN_STATUS:
                bars.update(self._task, status=self._status())
                self._asked_at = time.monotonic()

        def end(self, done: int) -> None:
            bars.update(self._task, total=done)

    with bars:
        yield Bars()
