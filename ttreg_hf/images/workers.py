"""How many processes decode images beside the one that runs the model."""

import os

import torch

_MOST_WORKERS = 16


def decode_workers(device: torch.device, processes: int) -> int:
    """None on a CPU, where the model needs the cores, else a share of the cores."""
    if device.type == "cpu":
        return 0
    return max(1, min(_MOST_WORKERS, (os.cpu_count() or 1) // processes - 1))
