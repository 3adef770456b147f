"""Records what a model gives when it is saved, and proves in a fresh interpreter that its folder gives the same."""

import json
import os
import site
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ttreg_hf.applying import shared_copy
from ttreg_hf.publishing import probe
from ttreg_hf.publishing.checkpoint_config import read_config_fields
from ttreg_hf.publishing.fresh_interpreter import run_fresh
from ttreg_hf.publishing.published_files import EXPECTED_OUTPUTS, suitcase_files
from ttreg_hf.records import from_json, read_json

TOLERANCE = 1e-3  # of an output's largest value; another neuron changes more, another CPU less
_FORMAT = 1
Outputs = Mapping[str, Sequence[Sequence[float]]]  # name -> values of each image
_KIND = dict[str, tuple[tuple[float, ...], ...]]  # the same, as a file holds it
TIME_LIMIT = 1800.0  # seconds, to load a model and run it twice on the CPU
_PASSED_ON = (  # variables that Python and PyTorch may need; all others, and the secrets in them, are not
    *("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "TMPDIR", "TEMP", "TMP", "LANG", "LC_ALL"),
    *("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "OMP_NUM_THREADS", "MKL_NUM_THREADS"),
)
_AGAIN = "Make the checkpoint again with `ttreg apply`."


def expected_outputs(model: PreTrainedModel) -> dict[str, Any]:
    """What `check_outputs` will expect of this model, as JSON takes it; computed in float32 on the CPU.

    Raises:
        ValueError: an output is not finite.
    """
    return {"format": _FORMAT, "outputs": probe.outputs_on_probe(float32_twin(model))}


def check_outputs(directory: str | Path, *, trust_remote_code: bool = False, time_limit: float = TIME_LIMIT) -> float:
    """Load a folder in a fresh interpreter without ttreg_hf, and compare its outputs with the recorded ones.

    The interpreter runs the folder's code: offline, for a limited time, without the variables of this process.

    Args:
        directory: checkpoint folder.
        trust_remote_code: run its code even where it is not the installed one.
        time_limit: seconds that the interpreter may take.

    Returns:
        The largest difference, as a share of the output's largest value.

    Raises:
        FileNotFoundError: nothing was recorded.
        ValueError: the folder's code is not the installed one, and `trust_remote_code` is not set.
        RuntimeError: it does not load, or gives other outputs.
    """
    directory = Path(directory)
    recorded = read_expected_outputs(directory)
    if not trust_remote_code:
        check_code(directory)
    difference = largest_difference(recorded, outputs_without_ttreg(directory, time_limit=time_limit))
    if not difference <= TOLERANCE:
        raise RuntimeError(
            f"{directory} must give the outputs that were recorded when it was made, but differs by {difference:.1e} "
            f"of their size (allowed: {TOLERANCE:.0e}). A file was changed. {_AGAIN}"
        )
    return difference


def check_code(directory: Path) -> None:
    """Refuse a folder whose code is not, byte for byte, the one that is installed.

    Raises:
        FileNotFoundError: no checkpoint folder.
        ValueError: it is not, or the config names code elsewhere.
    """
    read_config_fields(directory)
    others = [
        name
        for name, content in sorted(suitcase_files().items())
        if not (directory / name).is_file() or (directory / name).read_bytes() != content
    ]
    if others:
        raise ValueError(
            f"Without a flag only the installed code is run, but {', '.join(others)} of {directory} "
            f"{'differs' if len(others) == 1 else 'differ'} from it. Read it, and run it with `--trust-remote-code` "
            "(`trust_remote_code=True`); or make the checkpoint again with `ttreg apply`."
        )


def read_expected_outputs(directory: Path) -> Outputs:
    """What was recorded of a checkpoint folder.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or of another format.
    """
    path = directory / EXPECTED_OUTPUTS
    if not path.is_file():
        raise FileNotFoundError(
            f"A checkpoint holds {EXPECTED_OUTPUTS}, by which it is verified, but {directory} has none. Make it with "
            "`ttreg apply` or `save_checkpoint`."
        )
    recorded = read_json(path, remedy=_AGAIN)
    if recorded.get("format") != _FORMAT:
        raise ValueError(
            f"{path} has format {recorded.get('format')!r}, this version reads {_FORMAT}. Make the checkpoint again "
            "with `ttreg apply`, or install the version of ttreg_hf that wrote it."
        )
    try:
        return from_json(_KIND, recorded.get("outputs"), name="outputs")
    except TypeError as error:
        raise ValueError(f"{path} is damaged: {error} {_AGAIN}") from error


def outputs_without_ttreg(directory: Path, *, time_limit: float = TIME_LIMIT) -> Outputs:
    """What the folder gives in an interpreter that cannot import ttreg_hf, and has neither network nor secrets.

    Raises:
        RuntimeError: it does not load there, or not in time.
    """
    source, folder = Path(probe.__file__).read_text(encoding="utf-8"), directory.resolve()
    with tempfile.TemporaryDirectory(prefix="ttreg-verify-") as home:
        try:
            child = run_fresh(source, folder, env=_environment(home), cwd=home, timeout=time_limit)
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(
                f"{directory} must load and run in a fresh interpreter within {time_limit / 60:g} minutes, but did "
                f"not. {_AGAIN}"
            ) from error
    try:
        if child.returncode == 0:
            return from_json(_KIND, json.loads(child.stdout.strip().splitlines()[-1]), name="outputs")
        reason = (child.stderr.strip().splitlines() or ["no message"])[-1]
    except (IndexError, ValueError, TypeError):
        reason = "no outputs"
    raise RuntimeError(
        f"{directory} must load in a fresh interpreter without ttreg_hf, but there it ends with: {reason}. {_AGAIN}"
    )


def _environment(home: str) -> dict[str, str]:
    """Of the fresh interpreter, whose home is an empty folder."""
    passed_on = {name: value for name, value in os.environ.items() if name in _PASSED_ON}
    own = {"HOME": home, "HF_HOME": home, "HF_MODULES_CACHE": f"{home}/modules", "HF_HUB_OFFLINE": "1"}
    return {**passed_on, **own, "PYTHONUSERBASE": site.getuserbase(), "CUDA_VISIBLE_DEVICES": ""}


def float32_twin(model: PreTrainedModel) -> Any:
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
