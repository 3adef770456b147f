"""Interleaved timing: calls take turns, so that a machine that slows down slows all of them."""

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Timing:
    """Seconds of one call.

    Args:
        median: over the rounds.
        spread: half the distance between the quartiles, over the median.
        rounds: that were measured.
    """

    median: float
    spread: float
    rounds: int


def time_interleaved(
    calls: Mapping[str, Callable[[], object]],
    *,
    device: torch.device,
    rounds: int,
    warm_up: int = 2,
    limit: float = float("inf"),
) -> dict[str, Timing]:
    """Each call once a round, in turn, the device drained before and after.

    After `limit` seconds no new round begins; three are measured in any case.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    begin = time.perf_counter()
    for round_number in range(warm_up + rounds):
        if time.perf_counter() - begin > limit and round_number >= warm_up + 3:
            break
        for name, call in calls.items():
            synchronize(device)
            start = time.perf_counter()
            call()
            synchronize(device)
            if round_number >= warm_up:
                seconds[name].append(time.perf_counter() - start)
    return {name: _timing(values) for name, values in seconds.items()}


def synchronize(device: torch.device) -> None:
    """Wait until the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(call: Callable[[], object], device: torch.device) -> int | None:
    """Bytes that the device held at most during a call; `None` on a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device)


def machine(device: torch.device) -> str:
    """What was measured on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return f"{name}, torch {torch.__version__}, Python {platform.python_version()}"


def _timing(values: list[float]) -> Timing:
    median = statistics.median(values)
    quartiles = statistics.quantiles(values, n=4) if len(values) > 1 else [median] * 3
    return Timing(median, (quartiles[2] - quartiles[0]) / 2 / median, len(values))
