"""What a page gets of the neuron switch: maps as levels of colour scales, photographs as JPEG, notes as text.

Letters: `S` states of the model, `L`, `A` blocks, `h`, `w` patches in height and width, `K` coordinates.
"""

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.colors import Normalize
from PIL import Image
from torch import Tensor

from ttreg_hf.pictures.colours import COLOUR_MAPS, drawn_attention, shared_scale
from ttreg_hf.pictures.numbers import percent, short_number
from ttreg_hf.report.neuron_switch import MOVED, NeuronSwitch, Photograph

_JPEG_QUALITY = 90
_MEAN = "mean of all blocks"


def switch_data(switch: NeuronSwitch, norm_threshold: float | None) -> dict[str, Any]:
    """As JSON takes it; `switch.js` reads it.

    A map has one choice or several, such as blocks; each choice has one scale for all photographs and states.

    Args:
        switch: recorded.
        norm_threshold: at the detection block, marked on its colour bar, and counted by; `None`: neither.
    """
    norms = [photograph.norms_SLhw for photograph in switch.photographs]
    attention = [_with_mean(photograph.attention_SAhw) for photograph in switch.photographs]
    detection = switch.norm_layers.index(switch.detection_layer)
    scales = {
        "norms": [
            shared_scale(
                [maps[:, row].numpy() for maps in norms],
                at_least=1.05 * norm_threshold if norm_threshold is not None and row == detection else 0.0,
            )
            for row in range(len(switch.norm_layers))
        ],
        "attention": [
            shared_scale([drawn_attention(maps[:, row]) for maps in attention]) for row in range(attention[0].shape[1])
        ],
    }
    names = {"norms": _blocks(switch.norm_layers), "attention": _blocks(switch.attention_layers)}
    if len(names["attention"]) > 1:
        names["attention"].append(_MEAN)
    maps = {name: _map_data(name, names[name], scales[name]) for name in scales}
    maps["norms"]["shown"], maps["attention"]["shown"] = detection, len(switch.attention_layers) - 1
    if norm_threshold is not None:
        maps["norms"]["choices"][detection]["mark"] = float(scales["norms"][detection](norm_threshold))
        maps["norms"]["choices"][detection]["threshold"] = short_number(norm_threshold)
    return {
        "states": [{"kind": state.kind, "neurons": state.num_neurons} for state in switch.states],
        "counts": [0, *(state.num_neurons for state in switch.states if state.kind == MOVED)],
        "spikes": switch.num_spikes,
        "maps": maps,
        "cosines": _colours("cosines"),
        "photographs": [
            _photograph_data(photograph, scales, detection, norm_threshold) for photograph in switch.photographs
        ],
    }


def _with_mean(values_SAx: Tensor) -> Tensor:
    """With the mean over blocks as one more, where there are several."""
    return torch.cat([values_SAx, values_SAx.mean(1, keepdim=True)], 1) if values_SAx.shape[1] > 1 else values_SAx


def _blocks(layers: Sequence[int]) -> list[str]:
    return [f"block {layer}" for layer in layers]


def _map_data(name: str, choices: Sequence[str], scales: Sequence[Normalize]) -> dict[str, Any]:
    ends = [[short_number(float(scale.inverse(end))) for end in (0.0, 1.0)] for scale in scales]
    return {
        "colours": _colours(name),
        "choices": [
            {"name": choice, "low": low, "high": high} for choice, (low, high) in zip(choices, ends, strict=True)
        ],
    }


def _colours(name: str) -> str:
    """256 colours, from the lowest value to the highest."""
    return _base64((255 * colormaps[COLOUR_MAPS[name]](np.arange(256))[:, :3]).round().astype(np.uint8))


def _photograph_data(
    photograph: Photograph, scales: dict[str, list[Normalize]], detection: int, norm_threshold: float | None
) -> dict[str, Any]:
    attention_SAhw = _with_mean(photograph.attention_SAhw)
    drawn = drawn_attention(attention_SAhw)
    states = []
    for state, norms_Lhw in enumerate(photograph.norms_SLhw):
        data: dict[str, Any] = {
            "norms": [_levels(scale, norms) for scale, norms in zip(scales["norms"], norms_Lhw.numpy(), strict=True)],
            "attention": [
                _levels(scale, shares) for scale, shares in zip(scales["attention"], drawn[state], strict=True)
            ],
            "median": [_rounded(norms.median()) for norms in norms_Lhw],
            "largest": [_rounded(norms.max()) for norms in norms_Lhw],
            "notes": _notes(photograph, attention_SAhw, state, detection, norm_threshold),
        }
        if photograph.colours_Shw3 is not None:
            data["colours"] = _base64(photograph.colours_Shw3[state].numpy())
        if photograph.directions_ShwK is not None:
            data["directions"] = _base64((127 * photograph.directions_ShwK[state]).round().to(torch.int8).numpy())
        states.append(data)
    return {
        "jpeg": "data:image/jpeg;base64," + _base64(_jpeg(photograph.pixels_HW3)),
        "grid": list(photograph.norms_SLhw.shape[2:]),
        "patch": int(photograph.norms_SLhw[0, detection].argmax()),
        "states": states,
    }


def _levels(scale: Normalize, values: np.ndarray) -> str:
    """One byte a value from the first colour to the last, row by row, base64."""
    return _base64(np.round(255 * np.asarray(scale(values))).astype(np.uint8))


def _notes(
    photograph: Photograph, attention_SAhw: Tensor, state: int, detection: int, norm_threshold: float | None
) -> dict[str, str | list[str]]:
    """What stands below the maps: one text, or one for each choice of the map that it is about."""
    norms_Lhw, attention_Ahw = photograph.norms_SLhw[state], attention_SAhw[state]
    notes: dict[str, str | list[str]] = {
        "largest_norm": [short_number(float(norms.max())) for norms in norms_Lhw],
        "largest_attention": [percent(attention.max()) for attention in attention_Ahw],
        "on_register": [percent(share) for share in _with_mean(photograph.on_register_SA)[state]],
        "similarity": f"{float(photograph.similarity_S[state]):.4f}",
    }
    if norm_threshold is not None:
        norms, before = norms_Lhw[detection], photograph.norms_SLhw[0, detection] > norm_threshold
        notes["outliers"] = f"{int((norms > norm_threshold).sum())} of {norms.numel()}"
        shares = [percent(attention[before].sum()) for attention in attention_Ahw]
        notes["on_outliers"] = shares if before.any() else "none"
    return notes


def _rounded(value: Tensor) -> float:
    return float(f"{float(value):.4g}")


def _jpeg(pixels_HW3: Tensor) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels_HW3.numpy()).save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return buffer.getvalue()


def _base64(data: bytes | np.ndarray) -> str:
    return base64.b64encode(data if isinstance(data, bytes) else np.ascontiguousarray(data).tobytes()).decode("ascii")
