"""The base model, the patched one, and what else people do, all with the same weights."""

import copy
import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from ttreg_hf.applying import add_test_time_registers
from ttreg_hf.kernels import use_triton
from ttreg_hf.known.checkpoints import known_checkpoint
from ttreg_hf.measuring.tower import VisionTower
from ttreg_hf.modeling.modeling_ttreg import neurons_by_layer
from ttreg_hf.modeling.registers import NeuronShift

BASE, PATCHED, KERNEL = "base", "patched", "patched with the kernel"
CONSTANT, ZEROED = "constant mode", "neurons zeroed alone"
TOKEN_ALONE, HOOKS, TRAINED = "token alone", "hooks with clone", "4 trained registers"
BASELINES = (PATCHED, KERNEL, CONSTANT, ZEROED, TOKEN_ALONE, HOOKS, TRAINED)
_SHARED = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "image_size",
    "patch_size",
    "mlp_ratio",
    "use_swiglu_ffn",
)


def baselines_of(base: Any, size: str, *, kernel: bool) -> dict[str, Any]:
    """Models by name, the base model first.

    Args:
        base: a stock model.
        size: of it, as `random_model` names it.
        kernel: the patched model with the Triton kernel, too.
    """
    pairs = neurons_of(size, base)
    patched = add_test_time_registers(base, pairs)
    models: dict[str, Any] = {BASE: base, PATCHED: patched}
    if kernel:
        models[KERNEL] = add_test_time_registers(base, pairs)
        use_triton(models[KERNEL])
    models[CONSTANT], models[ZEROED] = (_constant(base, pairs, alone) for alone in (False, True))
    models[TOKEN_ALONE] = _without_shift(patched)
    models[HOOKS] = _hooked(copy.deepcopy(base), pairs)
    if size.startswith("dinov2"):
        fields = {key: value for key, value in base.config.to_dict().items() if key in _SHARED}
        weights = next(base.parameters())
        with weights.device:
            trained = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**fields, num_register_tokens=4))
        models[TRAINED] = trained.eval().to(weights.dtype)
    return models


def neurons_of(size: str, base: Any) -> list[list[int]]:
    """The 45 published neurons of DINOv2-L; for other sizes as many, in six layers at the same depth."""
    known = known_checkpoint("facebook/dinov2-large")
    if size == "dinov2-large" and known is not None and known.register_neurons is not None:
        return [list(pair) for pair in known.register_neurons]
    last = VisionTower.of(base).num_layers * 3 // 4
    return [[last - index % 6, index // 6] for index in range(45)]


def _constant(base: Any, pairs: list[list[int]], alone: bool) -> Any:
    """In constant mode from the last shifted layer on; `alone`: no attention reads a row."""
    layers = VisionTower.of(base).num_layers
    rows = 0 if alone else layers - max(layer for layer, _ in pairs)
    constants = torch.zeros(rows, base.config.hidden_size)
    return add_test_time_registers(base, pairs, test_time_register_mode="constant", constants=constants)


class _NoShift(nn.Module):
    def forward(self, acts_BTF: Tensor, *, in_place: bool = True) -> Tensor:
        return acts_BTF


def _without_shift(patched: Any) -> Any:
    """Registers come and go, but no neuron is moved: the least that an extra token costs."""
    twin = add_test_time_registers(patched, patched.config.register_neurons)
    for module in list(twin.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, NeuronShift):
                setattr(module, name, _NoShift())
    return twin


def _hooked(model: Any, pairs: list[list[int]]) -> Any:
    """What people do by hand: hooks that append a token and clone the activations to write into them."""
    tower = VisionTower.of(model)
    layout = dataclasses.replace(tower.base_layout, num_test_time_registers=1)
    tower.trunk.get_submodule(tower.family.embeddings).register_forward_hook(lambda m, args, out: layout.insert(out))
    tower.blocks[-1].register_forward_hook(lambda m, args, out: layout.remove(out))
    for layer, neurons in neurons_by_layer(pairs).items():

        def move(module: Any, args: tuple[Tensor], neurons: list[int] = neurons) -> tuple[Tensor]:
            acts = args[0].clone()
            for neuron in neurons:
                column = acts[:, :, neuron]
                strongest = column.abs().argmax(1, keepdim=True)
                acts[:, layout.registers, neuron] = column.gather(1, strongest)
                acts[:, layout.patches, neuron] = 0
            return (acts,)

        tower.down_projections[layer].register_forward_pre_hook(move)
    return model
