"""How many images fit into one forward pass."""

import torch
from torch import Tensor

from ttreg_hf.measuring.recorder import Recorder

_ON_A_CPU = 16
_MOST = 128
_PROBED = 4
_SHARE_OF_FREE = 0.6


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
