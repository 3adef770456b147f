"""Checkpoints written under one release of transformers and read under another; run inside each environment.

`python -m ttreg_hf.benchmarks.exchange write FOLDER OUTPUTS` writes one patched checkpoint a family, `read` reads them
with ttreg_hf, and the same with the source of `STRANGER` without it. Each writes what the models make of fixed images.
"""

import json
import sys
from pathlib import Path

from transformers import AutoModel

from ttreg_hf.applying import add_test_time_registers
from ttreg_hf.modeling import register_with_auto_classes
from ttreg_hf.planted.kinds import FAMILIES
from ttreg_hf.planted.model import planted_model
from ttreg_hf.probe import outputs_on_probe
from ttreg_hf.writing import write_file

STRANGER = """
import json, pathlib, runpy, sys
sys.modules["ttreg_hf"] = None  # as if it were not installed
probe = runpy.run_path(sys.argv[1])
outputs = {
    folder.name: probe["outputs_on_probe"](probe["load_like_a_stranger"](str(folder)))
    for folder in sorted(pathlib.Path(sys.argv[2]).iterdir())
}
pathlib.Path(sys.argv[3]).write_text(json.dumps(outputs))
"""

Outputs = dict[str, dict[str, list[list[float]]]]  # family -> name of the output -> values of each image


def write_checkpoints(folder: Path) -> Outputs:
    """Write a patched planted model of every family; what each makes of fixed images."""
    outputs = {}
    for name, (family, fields) in FAMILIES.items():
        known = planted_model(family, **fields)
        patched = add_test_time_registers(known.model, known.register_neurons)
        patched.save_pretrained(folder / name)
        outputs[name] = outputs_on_probe(patched)
    return outputs


def read_checkpoints(folder: Path) -> Outputs:
    """What the checkpoints of a folder make of the same images, loaded by ttreg_hf's own classes."""
    register_with_auto_classes()
    return {path.name: outputs_on_probe(AutoModel.from_pretrained(path).eval()) for path in sorted(folder.iterdir())}


if __name__ == "__main__":
    does = {"write": write_checkpoints, "read": read_checkpoints}[sys.argv[1]]
    write_file(sys.argv[3], json.dumps(does(Path(sys.argv[2]))).encode())
