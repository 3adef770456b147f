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
_FORMAT = 3


def save_switch(switch: NeuronSwitch, directory: str | Path) -> Path:
    """Write `switch.safetensors`, all of it or nothing: maps as float16, numbers as float32, photographs as uint8.

    The rest is JSON.
    """
    path = Path(directory) / SWITCH_FILE
    tensors = {}
    for place, photograph in enumerate(switch.photographs):
        for name, tensor in vars(photograph).items():
            if tensor is None:
                continue
            is_map = tensor.is_floating_point() and tensor.ndim > 2
            kept = tensor.clamp(max=torch.finfo(torch.float16).max).half() if is_map else tensor
            tensors[f"{place}.{name}"] = kept.contiguous()
    described = {
        "format": _FORMAT,
        **{name: value for name, value in vars(switch).items() if name != "photographs"},
        "states": [dataclasses.asdict(state) for state in switch.states],
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
            norm_layers=tuple(described["norm_layers"]),
            attention_layers=tuple(described["attention_layers"]),
            detection_layer=described["detection_layer"],
            has_cls=described["has_cls"],
            note=described["note"],
            num_spikes=described["num_spikes"],
        )
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is not what `ttreg calibrate` writes ({type(error).__name__}: {error}). Calibrate again, or "
            "remove it for a report without photographs."
        ) from error


def _photograph(file: safe_open, place: int) -> Photograph:
    prefix = f"{place}."
    names = [name.removeprefix(prefix) for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118, it is no dict
    tensors = {name: file.get_tensor(prefix + name) for name in names}
    return Photograph(**{name: each.float() if each.is_floating_point() else each for name, each in tensors.items()})
