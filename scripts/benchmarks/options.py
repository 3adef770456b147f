"""Options that the benchmarks share; a value that no benchmark can use ends in one line."""

from collections.abc import Callable
from typing import Annotated, Any

import torch
import typer

from benchmarks.models import SIZES
from ttreg_hf.loading import check_device, default_device


def one_of(*allowed: str) -> Callable[[Any], Any]:
    """A callback for an option, given once or several times, that takes these values."""

    def check(value: Any) -> Any:
        for given in [value] if isinstance(value, str) else value or ():
            if given not in allowed:
                raise typer.BadParameter(f"it is one of {', '.join(allowed)}; got {given}.")
        return value

    return check


def place_of(device: str | None) -> torch.device:
    """The device of this name, or by default the first GPU, or the CPU."""
    if device is None:
        return default_device()
    try:
        check_device(device)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    return torch.device(device)


Size = Annotated[str, typer.Option(callback=one_of(*SIZES), help=f"Of the random model: {', '.join(SIZES)}.")]
Sizes = Annotated[list[str], typer.Option(callback=one_of(*SIZES), help=f"{', '.join(SIZES)}; may be given again.")]
Dtype = Annotated[
    str, typer.Option(callback=one_of("float32", "float16", "bfloat16"), help="float32, float16 or bfloat16.")
]
Device = Annotated[str | None, typer.Option(help="cuda or cpu; a GPU by default, where there is one.")]
ImageSize = Annotated[int, typer.Option(min=14, help="In pixels.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Of each process.")]
Rounds = Annotated[int, typer.Option(min=1, help="Interleaved rounds.")]
