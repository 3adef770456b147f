"""What the page gets of the neuron switch: maps as levels of one colour scale, photographs as JPEG, notes as text.

Letters: `S` states of the model, `h`, `w` patches in height and width.
"""

import base64
import io
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import Normalize
from PIL import Image
from torch import Tensor

from ttreg_hf.pictures.colours import COLOUR_MAPS, drawn_attention, shared_scale
from ttreg_hf.pictures.numbers import percent, short_number
from ttreg_hf.report.neuron_switch import MOVED, NeuronSwitch, Photograph

_JPEG_QUALITY = 90


def switch_data(switch: NeuronSwitch, norm_threshold: float) -> dict[str, Any]:
    """As JSON takes it; `report.js` reads it.

    Args:
        switch: recorded.
        norm_threshold: marked on the colour bar, and counted by.
    """
    norms = [photograph.norms_Shw.numpy() for photograph in switch.photographs]
    attention = [drawn_attention(photograph.attention_Shw) for photograph in switch.photographs]
    scales = {"norms": shared_scale(norms, at_least=1.05 * norm_threshold), "attention": shared_scale(attention)}
    return {
        "states": [{"kind": state.kind, "neurons": state.num_neurons} for state in switch.states],
        "counts": [0, *(state.num_neurons for state in switch.states if state.kind == MOVED)],
        "scales": {name: _scale_data(name, scale) for name, scale in scales.items()},
        "mark": float(scales["norms"](norm_threshold)),
        "photographs": [
            {
                "jpeg": "data:image/jpeg;base64," + _base64(_jpeg(photograph.pixels_HW3)),
                "grid": list(photograph.norms_Shw.shape[1:]),
                "states": [
                    {
                        "norms": _levels(scales["norms"], norms[place][state]),
                        "attention": _levels(scales["attention"], attention[place][state]),
                        **_notes(photograph, state, norm_threshold),
                    }
                    for state in range(len(switch.states))
                ],
            }
            for place, photograph in enumerate(switch.photographs)
        ],
    }


def _scale_data(name: str, scale: Normalize) -> dict[str, Any]:
    colours = (255 * colormaps[COLOUR_MAPS[name]](np.arange(256))[:, :3]).round().astype(np.uint8)
    low, high = (short_number(float(scale.inverse(end))) for end in (0.0, 1.0))
    return {"colours": _base64(colours.tobytes()), "low": low, "high": high}


def _levels(scale: Normalize, values: np.ndarray) -> str:
    """One byte a value from the first colour to the last, row by row, base64."""
    return _base64(np.round(255 * np.asarray(scale(values))).astype(np.uint8).tobytes())


def _notes(photograph: Photograph, state: int, norm_threshold: float) -> dict[str, str]:
    """What stands below the maps."""
    norms, attention = photograph.norms_Shw[state], photograph.attention_Shw[state]
    outliers, before = int((norms > norm_threshold).sum()), photograph.norms_Shw[0] > norm_threshold
    notes = {
        "outliers": f"{outliers} of {norms.numel()}",
        "largest_norm": short_number(float(norms.max())),
        "largest_attention": percent(attention.max()),
        "on_register": percent(photograph.on_register_S[state]),
    }
    notes["on_outliers"] = percent(attention[before].sum()) if before.any() else "none"
    return notes


def _jpeg(pixels_HW3: Tensor) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels_HW3.numpy()).save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return buffer.getvalue()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
