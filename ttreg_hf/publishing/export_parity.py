"""Does an exported program give what torch gives? On photographs, in batches and one by one; and how fast it is.

Letters: `B` images.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ttreg_hf.measuring.interleaved import time_interleaved
from ttreg_hf.publishing.export_program import Inputs
from ttreg_hf.publishing.named_outputs import named_outputs
from ttreg_hf.publishing.output_check import TOLERANCE

MAX_INT8_ERROR = 0.1
"""1 - cosine to torch's output, of the image where it is largest: more is no rounding of the same feature."""
_ROUNDS = 7  # of timing


@dataclass(frozen=True)
class OutputParity:
    """One output of the program beside torch's.

    Args:
        name: of the output.
        max_difference: the largest, as a share of the output's largest value.
        mean_difference: mean of the absolute differences, over that of the absolute values.
        error: 1 - cosine to torch's, of the image where it is largest.
    """

    name: str
    max_difference: float
    mean_difference: float
    error: float


@dataclass(frozen=True)
class Parity:
    """A program beside torch.

    Args:
        num_images: photographs that both have seen.
        int8: whether the program computes in int8.
        outputs: one entry an output.
        torch_seconds: of one image, median.
        seconds: of the program, likewise.
        threads: that torch computed with.
    """

    num_images: int
    int8: bool
    outputs: tuple[OutputParity, ...]
    torch_seconds: float
    seconds: float
    threads: int

    @property
    def speed_ratio(self) -> float:
        """Time of the program over that of torch."""
        return self.seconds / self.torch_seconds

    @property
    def failed(self) -> tuple[str, ...]:
        """Outputs that are not torch's, each with its figure; float32 is judged by value, int8 by direction."""
        if self.int8:
            judged = {each.name: each.error for each in self.outputs}
            return _above(judged, MAX_INT8_ERROR, "1 - cosine")
        return _above({each.name: each.max_difference for each in self.outputs}, TOLERANCE, "difference")


def parity(model: Any, program: Callable[..., Any], inputs: Inputs, *, int8: bool) -> Parity:
    """Run both on the same images: all at once, and the first one alone.

    Args:
        model: in eval mode, float32, on the CPU.
        program: called as the model is.
        inputs: of two photographs or more.
        int8: whether the program computes in int8.

    Raises:
        RuntimeError: the program has other outputs, or outputs of other shapes.
    """
    one = rows(inputs, 1)
    pairs = [_both(model, program, given) for given in (inputs, one)]
    names = list(pairs[0][0])
    outputs = tuple(_output_parity(name, [(torchs[name], others[name]) for torchs, others in pairs]) for name in names)
    with torch.no_grad():
        calls = {"torch": lambda: model(**one), "program": lambda: program(**one)}
        timings = time_interleaved(calls, device=torch.device("cpu"), rounds=_ROUNDS)
    return Parity(
        num_images=max(len(value) for value in inputs.values() if isinstance(value, Tensor)),
        int8=int8,
        outputs=outputs,
        torch_seconds=timings["torch"].median,
        seconds=timings["program"].median,
        threads=torch.get_num_threads(),
    )


def rows(inputs: Inputs, count: int) -> dict[str, Any]:
    """The same of the first images."""
    return {name: value[:count] if isinstance(value, Tensor) else value for name, value in inputs.items()}


@torch.no_grad()
def _both(model: Any, program: Callable[..., Any], given: Inputs) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    expected, found = named_outputs(model(**given)), named_outputs(program(**given))
    shapes, others = ({name: tuple(value.shape) for name, value in each.items()} for each in (expected, found))
    if shapes != others:
        raise RuntimeError(f"A program gives the outputs of its model, {shapes}, but this one gives {others}.")
    return expected, found


def _output_parity(name: str, pairs: Sequence[tuple[Tensor, Tensor]]) -> OutputParity:
    compared = [_compared(expected.double(), found.double()) for expected, found in pairs]
    return OutputParity(name, *(max(values, key=_nan_last) for values in zip(*compared, strict=True)))


def _compared(expected: Tensor, found: Tensor) -> tuple[float, float, float]:
    difference = (expected - found).abs()
    smallest = torch.finfo(torch.float32).tiny
    cosine_B = torch.cosine_similarity(expected.flatten(1), found.flatten(1), dim=1)
    return (
        float(difference.max() / expected.abs().max().clamp_min(smallest)),
        float(difference.mean() / expected.abs().mean().clamp_min(smallest)),
        float((1 - cosine_B).max()),
    )


def _nan_last(value: float) -> float:
    """So that NaN is the largest."""
    return float("inf") if math.isnan(value) else value


def _above(judged: dict[str, float], bound: float, what: str) -> tuple[str, ...]:
    return tuple(
        f"{name} ({what} {value:.2g}, allowed is {bound:.2g})" for name, value in judged.items() if not value <= bound
    )
