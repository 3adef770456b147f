"""ONNX by torch itself, for releases of transformers that have no exporters."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ttreg_hf.publishing.named_outputs import named_outputs

_FILE = "model.onnx"


@torch.no_grad()
def write_onnx(model: Any, inputs: Mapping[str, Any], dynamic_shapes: Mapping[str, Any], folder: Path) -> None:
    """Write `model.onnx`, and the weights beside it.

    Args:
        model: in eval mode.
        inputs: an example of what it takes, of two images.
        dynamic_shapes: as `torch.export` takes them.
        folder: that exists.
    """
    names = list(named_outputs(model(**inputs)))
    program: Any = torch.onnx.export(
        model,
        kwargs=dict(inputs),
        dynamo=True,
        dynamic_shapes=dict(dynamic_shapes),
        output_names=names,
        verbose=False,
    )
    program.save(folder / _FILE, external_data=True)


class OnnxSession:
    """A program that `write_onnx` wrote, on the CPU; called as the model it came from.

    Args:
        folder: that holds it.
        threads: that it computes with.
    """

    def __init__(self, folder: Path, threads: int) -> None:
        import onnxruntime

        self._session = onnxruntime.InferenceSession(
            folder / _FILE, session_options(threads), providers=["CPUExecutionProvider"]
        )

    def __call__(self, **inputs: Any) -> dict[str, Tensor]:
        """Outputs by name."""
        read = {each.name for each in self._session.get_inputs()}  # what the program does not read has gone
        given = {name: value.numpy() for name, value in inputs.items() if name in read}
        names = [each.name for each in self._session.get_outputs()]
        return dict(zip(names, map(torch.from_numpy, self._session.run(names, given)), strict=True))


def session_options(threads: int) -> Any:
    """Of onnxruntime, which takes all cores otherwise."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return options
