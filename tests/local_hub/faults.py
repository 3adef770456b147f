"""Faults on demand: the next matching requests fail with a status, or lose their connection halfway."""

import re
import threading
from dataclasses import dataclass, field


@dataclass
class Fault:
    """Something that happens to the next `times` requests of `method` whose decoded path contains `path_regex`."""

    method: str
    path_regex: str
    times: int

    def matches(self, method: str, path: str) -> bool:
        return self.times > 0 and method == self.method and re.search(self.path_regex, path) is not None


@dataclass
class Failure(Fault):
    """The request gets this status for an answer."""

    status: int


@dataclass
class Drop(Fault):
    """The connection closes after `after_bytes` (None: half) of the request's body, or else of the response's."""

    after_bytes: int | None

    def bytes_to_transfer(self, total: int) -> int:
        return total // 2 if self.after_bytes is None else min(self.after_bytes, total)


@dataclass
class FaultPlan:
    """The faults that are still to come, oldest first."""

    faults: list[Fault] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, fault: Fault) -> None:
        with self._lock:
            self.faults.append(fault)

    def take(self, method: str, path: str) -> Fault | None:
        """The fault for this request, counted as used, or None."""
        with self._lock:
            for fault in self.faults:
                if fault.matches(method, path):
                    fault.times -= 1
                    return fault
        return None

    def remaining(self) -> list[Fault]:
        """Faults that have not happened (often) enough: the test did not test what it meant to."""
        with self._lock:
            return [fault for fault in self.faults if fault.times > 0]
