"""Records what a model gives when it is saved, and proves in a fresh interpreter that its folder gives the same."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ttreg_hf.applying import shared_copy
from ttreg_hf.publishing import probe

EXPECTED_OUTPUTS = "expected_outputs.json"
TOLERANCE = 1e-3  # of an output's largest value; another neuron changes more, another CPU less
_FORMAT = 1
Outputs = dict[str, list[list[float]]]  # name -> values of each image
_SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH")


def expected_outputs(model: PreTrainedModel) -> dict[str, Any]:
    """What `check_outputs` will expect of this model, as JSON takes it; computed in float32 on the CPU.

    Raises:
        ValueError: an output is not finite.
    """
    return {"format": _FORMAT, "outputs": probe.outputs_on_probe(_float32_twin(model))}


def check_outputs(directory: str | Path) -> float:
    """Load a folder in a fresh interpreter without ttreg_hf, and compare its outputs with the recorded ones.

    The interpreter runs the folder's code, offline, without the Hub token of this process.

    Returns:
        The largest difference, as a share of the output's largest value.

    Raises:
        FileNotFoundError: nothing was recorded.
        RuntimeError: it does not load, or gives other outputs.
    """
    directory = Path(directory)
    recorded = read_expected_outputs(directory)
    difference = largest_difference(recorded["outputs"], outputs_without_ttreg(directory))
    if not difference <= TOLERANCE:
        raise RuntimeError(
            f"{directory} must give the outputs that were recorded when it was made, but differs by {difference:.1e} "
            f"of their size (allowed: {TOLERANCE:.0e}). A file was changed: make the checkpoint again "
            "with `ttreg apply`."
        )
    return difference


def read_expected_outputs(directory: Path) -> dict[str, Any]:
    """The record of a checkpoint folder.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is of another format.
    """
    path = directory / EXPECTED_OUTPUTS
    if not path.is_file():
        raise FileNotFoundError(
            f"A checkpoint holds {EXPECTED_OUTPUTS}, by which it is verified, but {directory} has none. Make it with "
            "`ttreg apply` or `save_checkpoint`."
        )
    recorded = json.loads(path.read_text(encoding="utf-8"))
    if recorded.get("format") != _FORMAT:
        raise ValueError(
            f"{path} has format {recorded.get('format')!r}, this version reads {_FORMAT}. Make the checkpoint again "
            "with `ttreg apply`, or install the version of ttreg_hf that wrote it."
        )
    return recorded


def outputs_without_ttreg(directory: Path) -> Outputs:
    """What the folder gives in an interpreter that cannot import ttreg_hf, has no token and no network.

    Raises:
        RuntimeError: it does not load there.
    """
    with tempfile.TemporaryDirectory(prefix="ttreg-verify-") as home:
        environment = {name: value for name, value in os.environ.items() if name not in _SECRETS}
        environment |= {"HF_HOME": home, "HF_MODULES_CACHE": f"{home}/modules", "HF_HUB_OFFLINE": "1"}
        child = subprocess.run(
            [sys.executable, "-c", Path(probe.__file__).read_text(encoding="utf-8"), str(directory.resolve())],
            env=environment,
            cwd=home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
    if child.returncode != 0:
        reason = (child.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(
            f"{directory} must load in a fresh interpreter without ttreg_hf, but there it ends with: {reason}. Make "
            "the checkpoint again with `ttreg apply`."
        )
    return json.loads(child.stdout.strip().splitlines()[-1])


def _float32_twin(model: PreTrainedModel) -> Any:
    """In eval mode, float32, on the CPU; shares the parameters that are already so, and leaves the model as it is."""
    twins: dict[int, Any] = {}
    for parameter in model.parameters():
        twins[id(parameter)] = nn.Parameter(parameter.detach().to("cpu", torch.float32), requires_grad=False)
    for buffer in model.buffers():
        twins[id(buffer)] = buffer.to("cpu", torch.float32 if buffer.is_floating_point() else buffer.dtype)
    return shared_copy(model, twins).eval()


def largest_difference(expected: Outputs, given: Outputs) -> float:
    """Largest difference over all outputs, each as a share of its largest value; infinite if their shapes differ."""
    if expected.keys() != given.keys():
        return float("inf")
    largest = 0.0
    for name, values in expected.items():
        before, after = torch.tensor(values, dtype=torch.float64), torch.tensor(given[name], dtype=torch.float64)
        if before.shape != after.shape:
            return float("inf")
        largest = max(largest, float((before - after).abs().max() / before.abs().max().clamp_min(1e-6)))
    return largest
