"""A patched twin whose register neurons are replaced again and again; what they do not change is not run again."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ttreg_hf.applying import add_test_time_registers
from ttreg_hf.measuring.tower import VisionTower
from ttreg_hf.register_neuron import RegisterNeuron


class PatchedTwin:
    """A patched twin for images that go through it again and again, each time with other register neurons.

    Before its first register neuron a patched model moves nothing: an empty token passes through those blocks, and the
    same hidden states come out whatever the neurons are. They are kept.

    Args:
        base: the base model's tower, whose weights it shares.
        options: of `add_test_time_registers`.
        most_bytes: of hidden states that are kept; what is over is computed each time. Where memory runs out none are.
    """

    def __init__(self, base: VisionTower, options: Mapping[str, Any], *, most_bytes: int = 2**31) -> None:
        self._model: Any = add_test_time_registers(base.model, [], **options)
        self.tower = VisionTower.of(self._model)
        self._config = self._model.registers.config
        self._shift_scale = self._config.shift_scale
        self._first_layer = 0  # of the register neurons
        self._bytes_left = most_bytes
        self._kept: list[tuple[Mapping[str, Any], dict[int, Any]]] = []  # inputs, and what blocks made of them
        self._outputs: dict[int, Any] = {}  # of the inputs that are going through
        self.tower.trunk.register_forward_pre_hook(self._look_up, prepend=True, with_kwargs=True)
        for layer, block in enumerate(self.tower.blocks):
            block.forward = functools.partial(self._output, layer, block.forward)

    def moving(
        self, neurons: Sequence[RegisterNeuron], *, shift_value: str, shift_scale: float | None = None
    ) -> VisionTower:
        """The twin with these neurons, until it is asked for others; its registers are not to be switched off.

        Args:
            neurons: to move.
            shift_value: as in `add_test_time_registers`.
            shift_scale: likewise; that of the options by default.
        """
        self._config.register_neurons = [[neuron.layer, neuron.neuron] for neuron in neurons]
        self._config.shift_value = shift_value
        self._config.shift_scale = self._shift_scale if shift_scale is None else shift_scale
        self._model.place_register_neurons()
        self._first_layer = min((neuron.layer for neuron in neurons), default=0)
        return self.tower

    def _look_up(self, trunk: Any, args: Any, inputs: dict[str, Any]) -> None:
        for kept, outputs in self._kept:
            if _is_same(kept, inputs):
                self._outputs = outputs
                return
        self._outputs = {}
        self._kept.append((inputs, self._outputs))

    def _output(self, layer: int, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if layer in self._outputs and layer < self._first_layer:
            return self._outputs[layer]
        try:
            output = forward(*args, **kwargs)
        except torch.cuda.OutOfMemoryError:
            self._bytes_left, self._outputs = 0, {}
            self._kept.clear()
            raise
        size = (output[0] if isinstance(output, tuple) else output).nbytes
        if layer < self._first_layer and size <= self._bytes_left:
            self._bytes_left -= size
            self._outputs[layer] = output
        return output


def _is_same(kept: Mapping[str, Any], inputs: Mapping[str, Any]) -> bool:
    return kept.keys() == inputs.keys() and all(
        torch.equal(value, inputs[name]) if isinstance(value, Tensor) else value == inputs[name]
        for name, value in kept.items()
    )
