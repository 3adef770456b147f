"""Checkpoints written under one release of transformers and read under another; run inside each environment.

`python -m benchmarks.exchange write FOLDER` writes one patched checkpoint a family and its outputs on fixed images.
`read FOLDER` loads them with ttreg_hf, and without it by the code that they carry; exit code 1 if outputs differ.
"""

import json
import sys
from pathlib import Path

from transformers import AutoModel

from benchmarks.planted_kinds import FAMILIES
from ttreg_hf.applying import add_test_time_registers
from ttreg_hf.planted.model import planted_model
from ttreg_hf.publishing.output_check import Outputs, largest_difference, outputs_without_ttreg
from ttreg_hf.publishing.probe import outputs_on_probe
from ttreg_hf.writing import write_file

# another release may compute the same in another order
_MOST_DIFFERENCE = 1e-5
_OUTPUTS = "outputs.json"


def write_checkpoints(folder: Path) -> None:
    """Write a patched planted model of every family, each in a folder of its name, and its outputs beside it."""
    for name, (family, fields) in FAMILIES.items():
        known = planted_model(family, **fields)
        patched = add_test_time_registers(known.model, known.register_neurons)
        patched.save_pretrained(folder / name / "checkpoint")
        write_file(folder / name / _OUTPUTS, json.dumps(outputs_on_probe(patched)).encode())


def read_checkpoints(folder: Path) -> dict[str, tuple[float, float]]:
    """How far the outputs are from those that were written: with ttreg_hf, and by the checkpoint's own code.

    Returns:
        Family -> the two largest differences, relative to the largest value of that output.
    """
    differences = {}
    for path in sorted(folder.iterdir()):
        expected: Outputs = json.loads((path / _OUTPUTS).read_text(encoding="utf-8"))
        checkpoint = path / "checkpoint"
        ours = outputs_on_probe(AutoModel.from_pretrained(checkpoint).eval())
        theirs = outputs_without_ttreg(checkpoint)
        differences[path.name] = largest_difference(expected, ours), largest_difference(expected, theirs)
    return differences


def main(does: str, folder: Path) -> None:
    """Write, or read and print one line a family."""
    if does == "write":
        write_checkpoints(folder)
        return
    differences = read_checkpoints(folder)
    for name, (ours, theirs) in differences.items():
        print(f"{folder.name} {name}: with ttreg_hf {ours:.0e}, without {theirs:.0e}")
    if not differences or max(map(max, differences.values())) > _MOST_DIFFERENCE:
        raise SystemExit(1)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
