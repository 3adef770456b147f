"""What the page gets of the neuron switch: maps as levels of one colour scale, photographs as JPEG, notes as text.

Letters: `S` states of the model, `h`, `w` patches in height and width.
"""

import base64
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from PIL import Image
from torch import Tensor

from ttreg_hf.figures import short_number
from ttreg_hf.report.switch import MOVED, NeuronSwitch, Photograph

_COLOUR_MAPS = {"norms": "magma", "attention": "viridis"}
_LOG_SCALE_FROM = 8.0  # highest value over lowest: a linear scale would show one patch and darkness
_SMALLEST_SHARE = 1e-5  # of attention; less is drawn as this
_JPEG_QUALITY = 90


@dataclass(frozen=True)
class Scale:
    """One colour scale for all photographs and states.

    Args:
        low: value of the first colour.
        high: of the last one.
        is_log: whether colours are even on a logarithmic scale.
    """

    low: float
    high: float
    is_log: bool

    @classmethod
    def over(cls, maps: list[np.ndarray], *, at_least: float = 0.0) -> "Scale":
        """From the lowest value to the highest, or to `at_least`; logarithmic if they differ much."""
        low = min(float(values.min()) for values in maps)
        high = max(at_least, *(float(values.max()) for values in maps))
        return cls(low, high if high > low else low + 1.0, low > 0 and high / low >= _LOG_SCALE_FROM)

    def place(self, values: Any) -> np.ndarray:
        """From 0 (lowest) to 1 (highest)."""
        low, high, given = self.low, self.high, np.asarray(values, dtype=np.float64)
        if self.is_log:
            low, high, given = np.log(low), np.log(high), np.log(given)
        return np.clip((given - low) / (high - low), 0, 1)

    def levels(self, values: np.ndarray) -> str:
        """One byte a value, row by row, base64."""
        return _base64(np.round(255 * self.place(values)).astype(np.uint8).tobytes())


def switch_data(switch: NeuronSwitch, norm_threshold: float) -> dict[str, Any]:
    """As JSON takes it; `report.js` reads it.

    Args:
        switch: recorded.
        norm_threshold: marked on the colour bar, and counted by.
    """
    norms = [photograph.norms_Shw.numpy() for photograph in switch.photographs]
    attention = [100 * photograph.attention_Shw.numpy().clip(min=_SMALLEST_SHARE) for photograph in switch.photographs]
    scales = {"norms": Scale.over(norms, at_least=1.05 * norm_threshold), "attention": Scale.over(attention)}
    return {
        "states": [{"kind": state.kind, "neurons": state.num_neurons} for state in switch.states],
        "counts": [0, *(state.num_neurons for state in switch.states if state.kind == MOVED)],
        "scales": {name: _scale_data(name, scale) for name, scale in scales.items()},
        "mark": float(scales["norms"].place(norm_threshold)),
        "photographs": [
            {
                "jpeg": "data:image/jpeg;base64," + _base64(_jpeg(photograph.pixels_HW3)),
                "grid": list(photograph.norms_Shw.shape[1:]),
                "states": [
                    {
                        "norms": scales["norms"].levels(norms[place][state]),
                        "attention": scales["attention"].levels(attention[place][state]),
                        **_notes(photograph, state, norm_threshold),
                    }
                    for state in range(len(switch.states))
                ],
            }
            for place, photograph in enumerate(switch.photographs)
        ],
    }


def _scale_data(name: str, scale: Scale) -> dict[str, Any]:
    colours = (255 * colormaps[_COLOUR_MAPS[name]](np.arange(256))[:, :3]).round().astype(np.uint8)
    return {"colours": _base64(colours.tobytes()), "low": short_number(scale.low), "high": short_number(scale.high)}


def _notes(photograph: Photograph, state: int, norm_threshold: float) -> dict[str, str]:
    """What stands below the maps."""
    norms, attention = photograph.norms_Shw[state], photograph.attention_Shw[state]
    outliers, before = int((norms > norm_threshold).sum()), photograph.norms_Shw[0] > norm_threshold
    notes = {
        "outliers": f"{outliers} of {norms.numel()}",
        "largest_norm": short_number(float(norms.max())),
        "largest_attention": _percent(attention.max()),
        "on_register": _percent(photograph.on_register_S[state]),
    }
    notes["on_outliers"] = _percent(attention[before].sum()) if before.any() else "none"
    return notes


def _percent(share: Tensor) -> str:
    return f"{100 * float(share):.1f} %"


def _jpeg(pixels_HW3: Tensor) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels_HW3.numpy()).save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return buffer.getvalue()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
