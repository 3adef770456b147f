"""How many images fit into one forward pass."""

import os

import torch
from torch import Tensor

from ttreg_hf.calibration.recording import Recorder

_ON_A_CPU = 16
_MOST = 128
_PROBED = 4
_SHARE_OF_FREE = 0.6
_MOST_WORKERS = 16


def fit_batch_size(recorder: Recorder, pixel_values: Tensor) -> int:
    """Images in a batch: 16 on a CPU, on a GPU what its free memory holds with a margin, 128 at most.

    Args:
        recorder: of what will be recorded, open.
        pixel_values: one image, `(1, 3, H, W)`.
    """
    device = pixel_values.device
    if device.type != "cuda":
        return _ON_A_CPU
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    recorder(pixel_values.expand(_PROBED, -1, -1, -1))
    one_image = (torch.cuda.max_memory_allocated(device) - before) / _PROBED
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    return max(1, min(_MOST, int(_SHARE_OF_FREE * free / max(one_image, 1))))


def decode_workers(device: torch.device, processes: int) -> int:
    """Processes that decode images: none on a CPU, where the model needs the cores, else a share of the cores."""
    if device.type == "cpu":
        return 0
    return max(1, min(_MOST_WORKERS, (os.cpu_count() or 1) // processes - 1))
