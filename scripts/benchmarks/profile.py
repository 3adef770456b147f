"""Where the time of a call goes on a GPU."""

from collections.abc import Callable

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile


def kernels_of(call: Callable[[], object], most: int) -> list[tuple[str, float, int]]:
    """The kernels of a call that take longest together: name, milliseconds, launches."""
    spent = _spent(call)
    longest = sorted(spent, key=lambda name: -sum(spent[name]))[:most]
    return [(name, sum(spent[name]) / 1000, len(spent[name])) for name in longest]


def launches_of(call: Callable[[], object]) -> int:
    """How many kernels a call launches, copies included."""
    return sum(len(each) for each in _spent(call).values())


def _spent(call: Callable[[], object]) -> dict[str, list[float]]:
    """Microseconds of every launch, by kernel."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        call()
        torch.cuda.synchronize()
    spent: dict[str, list[float]] = {}
    for event in profiled.events() or ():
        if event.device_type == DeviceType.CUDA:
            spent.setdefault(event.name, []).append(event.device_time_total)
    return spent
