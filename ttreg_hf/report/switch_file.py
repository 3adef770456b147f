"""The data of the neuron switch as a file, so that the report can be made again without the model."""

import dataclasses
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ttreg_hf.report.neuron_switch import NeuronSwitch, Photograph, State
from ttreg_hf.writing import write_file

SWITCH_FILE = "switch.safetensors"
_FORMAT = 1


def save_switch(switch: NeuronSwitch, directory: str | Path) -> Path:
    """Write `switch.safetensors`, all of it or nothing: maps as float16, photographs as uint8, the rest as JSON."""
    path = Path(directory) / SWITCH_FILE
    tensors = {}
    for place, photograph in enumerate(switch.photographs):
        for name, tensor in vars(photograph).items():
            half = tensor.clamp(max=torch.finfo(torch.float16).max).half() if tensor.is_floating_point() else tensor
            tensors[f"{place}.{name}"] = half.contiguous()
    described = {
        "format": _FORMAT,
        "states": [dataclasses.asdict(state) for state in switch.states],
        "has_cls": switch.has_cls,
        "note": switch.note,
    }
    return write_file(path, save(tensors, metadata={"switch": json.dumps(described)}))


def load_switch(directory: str | Path) -> NeuronSwitch | None:
    """What `save_switch` wrote; `None` where there is no such file.

    Raises:
        ValueError: the file is not what `save_switch` writes, or of another version.
    """
    path = Path(directory) / SWITCH_FILE
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            described = json.loads((file.metadata() or {})["switch"])
            if described["format"] != _FORMAT:
                raise ValueError(f"format {described['format']!r}, this version reads {_FORMAT}")
            count = len({name.split(".")[0] for name in file.keys()})  # noqa: SIM118, it is no dict
            photographs = tuple(_photograph(file, place) for place in range(count))
        return NeuronSwitch(
            states=tuple(State(**state) for state in described["states"]),
            photographs=photographs,
            has_cls=described["has_cls"],
            note=described["note"],
        )
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is not what `ttreg calibrate` writes ({type(error).__name__}: {error}). Calibrate again, or "
            "remove it for a report without photographs."
        ) from error


def _photograph(file: safe_open, place: int) -> Photograph:
    names = [field.name for field in dataclasses.fields(Photograph)]
    tensors = {name: file.get_tensor(f"{place}.{name}") for name in names}
    return Photograph(**{name: each.float() if each.is_floating_point() else each for name, each in tensors.items()})
