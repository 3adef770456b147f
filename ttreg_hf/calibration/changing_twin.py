"""One patched twin whose register neurons change from trial to trial; what they do not change is not run again."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ttreg_hf.applying import add_test_time_registers
from ttreg_hf.families import blocks_of, trunk_of
from ttreg_hf.modeling.ttreg_base import TTRegModelMixin
from ttreg_hf.register_neuron import RegisterNeuron


class ChangingTwin:
    """A patched twin for images that go through it again and again, each time with other register neurons.

    Before its first register neuron a patched model moves nothing: an empty token passes through those blocks, and the
    same hidden states come out whatever the neurons are. They are kept.

    Args:
        model: the base model, whose weights it shares.
        options: of `add_test_time_registers`.
        most_bytes: of hidden states that are kept; what is over is computed each time. Where memory runs out none are.
    """

    def __init__(self, model: PreTrainedModel, options: Mapping[str, Any], *, most_bytes: int = 2**31) -> None:
        self._twin: Any = add_test_time_registers(model, [], **options)
        assert isinstance(self._twin, TTRegModelMixin)
        self._config = self._twin.registers.config
        self._shift_scale = self._config.shift_scale
        self._first_layer = 0  # of the register neurons
        self._bytes_left = most_bytes
        self._seen: list[tuple[Mapping[str, Any], dict[int, Any]]] = []  # inputs, and what blocks made of them
        self._outputs: dict[int, Any] = {}  # of the inputs that are going through
        trunk_of(self._twin).register_forward_pre_hook(self._look_up, prepend=True, with_kwargs=True)
        for layer, block in enumerate(blocks_of(self._twin)):
            block.forward = functools.partial(self._output, layer, block.forward)

    def moving(
        self, neurons: Sequence[RegisterNeuron], *, shift_value: str, shift_scale: float | None = None
    ) -> PreTrainedModel:
        """The twin with these neurons, until it is asked for others; its registers are not to be switched off.

        Args:
            neurons: to move.
            shift_value: as in `add_test_time_registers`.
            shift_scale: likewise; that of the options by default.
        """
        self._config.register_neurons = [[neuron.layer, neuron.neuron] for neuron in neurons]
        self._config.shift_value = shift_value
        self._config.shift_scale = self._shift_scale if shift_scale is None else shift_scale
        self._twin.place_register_neurons()
        self._first_layer = min((neuron.layer for neuron in neurons), default=0)
        return self._twin

    def _look_up(self, trunk: Any, args: Any, inputs: dict[str, Any]) -> None:
        for seen, outputs in self._seen:
            if _is_same(seen, inputs):
                self._outputs = outputs
                return
        self._outputs = {}
        self._seen.append((inputs, self._outputs))

    def _output(self, layer: int, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if layer in self._outputs and layer < self._first_layer:
            return self._outputs[layer]
        try:
            output = forward(*args, **kwargs)
        except torch.cuda.OutOfMemoryError:
            self._bytes_left, self._outputs = 0, {}
            self._seen.clear()
            raise
        size = (output[0] if isinstance(output, tuple) else output).nbytes
        if layer < self._first_layer and size <= self._bytes_left:
            self._bytes_left -= size
            self._outputs[layer] = output
        return output


def _is_same(seen: Mapping[str, Any], inputs: Mapping[str, Any]) -> bool:
    return seen.keys() == inputs.keys() and all(
        torch.equal(value, inputs[name]) if isinstance(value, Tensor) else value == inputs[name]
        for name, value in seen.items()
    )
