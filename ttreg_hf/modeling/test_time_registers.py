"""Test-time registers for any Vision Transformer: the token layout, the shift, and the modules and hooks around them.

A pretrained ViT writes global information onto a few background patches. A sparse set of MLP neurons, the register
neurons, does it. This file gives the model empty extra tokens, the test-time registers, and moves those neurons'
activation from the patches to them. No weight changes. Source: Jiang et al. 2025 (arXiv 2506.08010).

Letters: `B` images, `T` tokens, `P` prefix tokens, `R` test-time registers, `N` patches, `D` hidden channels,
`F` neurons, `K` register neurons of one layer, `H` heads.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import logging

_logger = logging.get_logger(__name__)
_HIDDEN = -1e4  # an additive attention mask hides a token with this or less


@dataclass(frozen=True)
class TokenLayout:
    """Where the tokens are: `[prefix | test-time registers | patches]`.

    Args:
        num_prefix_tokens: CLS, distillation and trained register tokens in front.
        num_test_time_registers: registers between prefix and patches; 0 where they have been removed.
        patch_size: height and width of a patch, in pixels.
    """

    num_prefix_tokens: int
    num_test_time_registers: int
    patch_size: tuple[int, int]

    @property
    def prefix(self) -> slice:
        return slice(0, self.num_prefix_tokens)

    @property
    def registers(self) -> slice:
        return slice(self.num_prefix_tokens, self.num_prefix_tokens + self.num_test_time_registers)

    @property
    def patches(self) -> slice:
        return slice(self.num_prefix_tokens + self.num_test_time_registers, None)

    def insert(self, tokens_BTD: Tensor) -> Tensor:
        """Zero vectors put in as registers: `(B, P + N, D)` -> `(B, P + R + N, D)`."""
        empty = tokens_BTD.new_zeros(tokens_BTD.shape[0], self.num_test_time_registers, tokens_BTD.shape[2])
        after_prefix = slice(self.num_prefix_tokens, None)
        return torch.cat([tokens_BTD[:, self.prefix], empty, tokens_BTD[:, after_prefix]], dim=1)

    def insert_into_mask(self, mask: Tensor) -> Tensor:
        """An attention mask in which all see the registers, and these see what anyone sees.

        Args:
            mask: 1 and 0, `(B, P + N)`; or `(B, H, P + N, P + N)`, boolean or added to the attention logits.
        """
        is_added = mask.ndim == 4 and mask.is_floating_point()
        columns = mask.new_full((*mask.shape[:-1], self.num_test_time_registers), 0 if is_added else 1)
        after_prefix = slice(self.num_prefix_tokens, None)
        mask = torch.cat([mask[..., self.prefix], columns, mask[..., after_prefix]], dim=-1)
        if mask.ndim == 2 or mask.shape[2] == 1:
            return mask
        rows = mask.amax(dim=2, keepdim=True).expand(-1, -1, self.num_test_time_registers, -1)
        return torch.cat([mask[:, :, self.prefix], rows, mask[:, :, after_prefix]], dim=2)

    def seen_by_registers(self, mask: Any) -> Tensor | None:
        """Which tokens the registers attend to, `(B, P + R + N)` booleans: all but padding. `None` if all.

        Args:
            mask: what a block's attention gets, in the form that its implementation takes.
        """
        if mask is None:
            return None
        if not isinstance(mask, Tensor):  # flex attention's
            images, tokens = (torch.arange(mask.shape[axis], device=mask.kv_indices.device) for axis in (0, -1))
            zero = torch.zeros_like(tokens[0])
            return mask.mask_mod(images[:, None], zero, zero + self.num_prefix_tokens, tokens)
        if mask.ndim == 2:  # flash attention's
            return mask.bool()
        row_BHT = mask[:, :, min(self.num_prefix_tokens, mask.shape[2] - 1)]
        return (row_BHT > _HIDDEN if mask.is_floating_point() else row_BHT.bool()).any(dim=1)

    def remove(self, tokens_BTD: Tensor) -> Tensor:
        """Registers taken out: `(B, P + R + N, D)` -> `(B, P + N, D)`; of a mask `(B, P + R + N)` likewise."""
        return torch.cat([tokens_BTD[:, self.prefix], tokens_BTD[:, self.patches]], dim=1)

    def remove_from_attention(self, attention_BHTT: Tensor) -> Tensor:
        """Rows and columns of the registers taken out; the rows that stay no longer sum to 1."""
        rows = torch.cat([attention_BHTT[:, :, self.prefix], attention_BHTT[:, :, self.patches]], dim=2)
        return torch.cat([rows[..., self.prefix], rows[..., self.patches]], dim=3)

    def patch_map(self, hidden_states: Tensor, height: int, width: int) -> Tensor:
        """Patch tokens as an image: `(B, T, D)` -> `(B, D, h, w)`.

        Args:
            hidden_states: tokens laid out as this layout says.
            height: of the image in pixels (`pixel_values.shape[-2]`), or of the patch grid.
            width: likewise.

        Raises:
            ValueError: the patches do not fill such a grid.
        """
        patches = hidden_states[:, self.patches]
        grid = (height, width)
        if height * width != patches.shape[1]:
            grid = (height // self.patch_size[0], width // self.patch_size[1])
        if grid[0] * grid[1] != patches.shape[1]:
            raise ValueError(
                f"`patch_map` needs as many patch tokens as the grid has places, got {patches.shape[1]} tokens for a "
                f"{grid[0]} x {grid[1]} grid. Give the height and width of `pixel_values`, and tokens that hold "
                f"{self.num_prefix_tokens} prefix tokens and {self.num_test_time_registers} test-time registers."
            )
        return patches.unflatten(1, grid).permute(0, 3, 1, 2)  # (B, N, D) -> (B, D, h, w)


def signed_max(acts_BTK: Tensor, seen_BT: Tensor | None = None) -> Tensor:
    """Largest-magnitude activation over tokens, sign kept.

    Args:
        acts_BTK: activations of K neurons on T tokens, any float dtype.
        seen_BT: tokens that count; all by default.

    Returns:
        `(B, K)`, in the units of the input; `signed_max(-a) == -signed_max(a)`. Of equal magnitudes the first wins.

    Source: Jiang et al. 2025 (arXiv 2506.08010), Algorithm 2, per image and per neuron.
    """
    magnitudes_BTK = acts_BTK.abs()
    if seen_BT is not None:
        magnitudes_BTK = magnitudes_BTK.masked_fill(~seen_BT.unsqueeze(-1), -1)
    strongest = magnitudes_BTK.argmax(dim=1, keepdim=True)  # (B, 1, K)
    return acts_BTK.gather(1, strongest).squeeze(1)


def _value_per_neuron(acts_BTK: Tensor, seen_BT: Tensor | None, layout: TokenLayout) -> Tensor:
    seen_BT = None if seen_BT is None else layout.remove(seen_BT)
    return signed_max(layout.remove(acts_BTK), seen_BT).unsqueeze(1)  # (B, 1, K)


def _value_per_layer(acts_BTK: Tensor, seen_BT: Tensor | None, layout: TokenLayout) -> Tensor:
    seen = None if seen_BT is None else seen_BT.unsqueeze(-1).expand_as(acts_BTK).flatten(1)
    return signed_max(acts_BTK.flatten(1).unsqueeze(-1), seen).unsqueeze(1)  # (B, 1, 1): one scalar an image


def _mean(patches_BNK: Tensor, seen_BN: Tensor | None) -> Tensor:
    if seen_BN is None:
        return patches_BNK.mean(dim=1, keepdim=True)
    seen_BN1 = seen_BN.unsqueeze(-1)
    return torch.where(seen_BN1, patches_BNK, 0).sum(dim=1, keepdim=True) / seen_BN1.sum(1, keepdim=True).clamp(min=1)


def _fill_outliers(patches_BNK: Tensor, seen_BN: Tensor | None) -> Tensor:
    mean = _mean(patches_BNK, seen_BN)
    deviation = _mean((patches_BNK - mean).square(), seen_BN).sqrt()
    return torch.where(patches_BNK > mean + deviation, mean, patches_BNK)


SHIFT_VALUES: dict[str, Callable[[Tensor, Tensor | None, TokenLayout], Tensor]] = {
    "per_neuron": _value_per_neuron,
    "per_layer": _value_per_layer,
}
SHIFT_FILLS: dict[str, Callable[[Tensor, Tensor | None], Tensor]] = {
    "zero": lambda patches_BNK, seen_BN: torch.zeros_like(patches_BNK),
    "mean": lambda patches_BNK, seen_BN: _mean(patches_BNK, seen_BN).expand_as(patches_BNK),
    "outliers": _fill_outliers,
    "keep": lambda patches_BNK, seen_BN: patches_BNK,
}


def shift_neurons(
    acts_BTF: Tensor,
    neurons_K: Tensor,
    layout: TokenLayout,
    *,
    value: str,
    fill: str,
    scale: float,
    seen_BT: Tensor | None = None,
) -> Tensor:
    """Move the activation of some neurons from the patch tokens to the test-time registers.

    Args:
        acts_BTF: inputs of the MLP's down projection.
        neurons_K: indices of the register neurons, int64, on the same device.
        layout: of the T tokens.
        value: what the registers get, a key of `SHIFT_VALUES`.
        fill: what stays on the patches, a key of `SHIFT_FILLS`.
        scale: factor on what the registers get.
        seen_BT: false for padding, which enters neither value nor fill; its own activation is shifted as a patch's.

    Returns:
        `(B, T, F)`; the prefix tokens and all other neurons are untouched.
    """
    acts_BTK = acts_BTF.index_select(-1, neurons_K)
    prefix, registers, patches = acts_BTK[:, layout.prefix], acts_BTK[:, layout.registers], acts_BTK[:, layout.patches]
    moved = (SHIFT_VALUES[value](acts_BTK, seen_BT, layout) * scale).expand_as(registers)
    left = SHIFT_FILLS[fill](patches, None if seen_BT is None else seen_BT[:, layout.patches])
    return acts_BTF.index_copy(-1, neurons_K, torch.cat([prefix, moved, left], dim=1))


class _Seen(threading.local):
    """What the registers of the block that runs now attend to; each thread has its own."""

    def __init__(self) -> None:  # runs once in each thread
        self.tokens: Tensor | None = None

    def __reduce__(self) -> Any:
        return _Seen, ()


class Registers:
    """What the modules and hooks of one patched model share: its config, its layout, and whether they are on.

    The methods named `before_...` and `on_...` are forward hooks. They hold no state between forward passes.
    """

    def __init__(
        self, config: Any, layout: TokenLayout, *, backbone: bool, mask_name: str, mask_place: int | None
    ) -> None:
        self.config = config
        self.layout = layout
        self.backbone = backbone
        self.mask_name, self.mask_place = mask_name, mask_place  # of the attention mask among the trunk's arguments
        self.seen = _Seen()
        self.enabled = True

    @property
    def active(self) -> bool:
        return self.enabled and self.config.num_test_time_registers > 0 and len(self.config.register_neurons) > 0

    @property
    def output_layout(self) -> TokenLayout:
        """Layout of the tokens that the model gives out now."""
        kept = self.layout.num_test_time_registers if self.active and self.config.output_registers else 0
        return TokenLayout(self.layout.num_prefix_tokens, kept, self.layout.patch_size)

    def before_trunk(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        """Let every token attend to the registers, where an attention mask over the base model's tokens is given."""
        if not self.active:
            return None
        place = self.mask_place
        if place is not None and len(args) > place and args[place] is not None:
            args = (*args[:place], self.layout.insert_into_mask(args[place]), *args[place + 1 :])
        if kwargs.get(self.mask_name) is not None:
            kwargs = {**kwargs, self.mask_name: self.layout.insert_into_mask(kwargs[self.mask_name])}
        return args, kwargs

    def before_attention(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Tell the shift of the same block which tokens are padding.

        Of all that sees the mask only this is run again when a block is recomputed for its gradients.
        """
        if self.active:
            mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
            if not (mask is None and self.seen.tokens is None):
                self.seen.tokens = self.layout.seen_by_registers(mask)

    def on_embeddings(self, module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        """Insert the registers."""
        if not self.active:
            return None
        if self.config.calibrated_patches and not (torch.compiler.is_compiling() or torch.jit.is_tracing()):
            _warn_if_far(output.shape[1] - self.layout.num_prefix_tokens, self.config.calibrated_patches)
        return self.layout.insert(output)

    def on_last_block(self, module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        """Remove the registers, before any norm, pooling or projector sees them."""
        return self.layout.remove(output) if self.active and not self.config.output_registers else None

    def on_captured(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Remove the registers from the captured `hidden_states` and `attentions`."""
        if not self.active:
            return None
        if self.seen.tokens is not None:
            self.seen.tokens = None
        if not self.config.output_registers:
            return _map_captured(output, self._without_registers)
        return _map_captured(output, self._with_registers_aside) if self.backbone else None

    def on_trunk(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Remove kept registers from `last_hidden_state`, where a head reads it."""
        if not (self.active and self.config.output_registers):
            return None
        if isinstance(output, tuple):
            return (self.layout.remove(output[0]), *output[1:])
        output["last_hidden_state"] = self.layout.remove(output["last_hidden_state"])
        return output

    def before_pooling(self, module: nn.Module, args: Any) -> Any:
        """Remove kept registers from the tokens that a pooling head attends to, and from its mask in any case."""
        if not self.active:
            return None
        tokens, *masks = args
        tokens = self.layout.remove(tokens) if self.config.output_registers else tokens
        return (tokens, *(None if mask is None else self.layout.remove(mask) for mask in masks))

    def on_backbone(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Give out the hidden states with registers that `on_captured` put aside."""
        if not (self.active and self.config.output_registers):
            return None
        return _map_captured(output, lambda states: tuple(getattr(s, "with_registers", s) for s in states))

    def _without_registers(self, states: tuple) -> tuple:
        if _ndim(states) == 4:
            return tuple(self.layout.remove_from_attention(attention) for attention in states)
        inner = tuple(None if state is None else self.layout.remove(state) for state in states[:-1])
        return (*inner, *states[-1:])  # the last block's output is clean already

    def _with_registers_aside(self, states: tuple) -> tuple:
        return states if _ndim(states) == 4 else tuple(self._aside(state) for state in states)

    def _aside(self, state: Tensor) -> Tensor:
        """Without registers, for a backbone's feature maps; carries the state with them until the output is made."""
        clean: Any = self.layout.remove(state)
        clean.with_registers = state
        return clean


def _warn_if_far(patches: int, calibrated: int) -> None:
    """Say once that images have more than twice, or less than half, the patches that the neurons were found with."""
    if not calibrated <= 2 * patches <= 4 * calibrated:
        _logger.warning_once(
            f"The register neurons of this model were found on images of {calibrated} patches. With more than twice as "
            "many, or less than half, nothing was measured: check the model at this size with `ttreg verify`."
        )


def _ndim(states: tuple) -> int:
    """3 for captured hidden states `(B, T, D)`, 4 for attentions `(B, H, T, T)`, 0 if nothing was captured."""
    return next((state.ndim for state in states if state is not None), 0)


def _map_captured(output: Any, change: Callable[[tuple], tuple]) -> Any:
    """Change the tuples of an output; a model output is changed in place, its `return_dict=False` form rebuilt."""
    if isinstance(output, tuple):
        return tuple(change(value) if isinstance(value, tuple) else value for value in output)
    for name in ("hidden_states", "attentions"):
        if output.get(name) is not None:
            output[name] = change(tuple(output[name]) if isinstance(output[name], list) else output[name])
    return output


class NeuronShift(nn.Module):
    """Moves the register neurons of one layer to the registers; the identity while they are off."""

    def __init__(self, neurons: list[int], registers: Registers) -> None:
        super().__init__()
        self.neurons = list(neurons)
        self.registers = registers
        self._index: dict[torch.device, Tensor] = {}

    def forward(self, acts_BTF: Tensor) -> Tensor:
        if not self.registers.active:
            return acts_BTF
        config = self.registers.config
        return shift_neurons(
            acts_BTF,
            self._index_on(acts_BTF.device),
            self.registers.layout,
            value=config.shift_value,
            fill=config.shift_fill,
            scale=config.shift_scale,
            seen_BT=self.registers.seen.tokens,
        )

    def _index_on(self, device: torch.device) -> Tensor:
        """The neurons as a tensor, made once a device: a buffer would be lost on the meta device."""
        if torch.compiler.is_compiling():
            return torch.tensor(self.neurons, device=device)
        if device not in self._index:
            with torch.inference_mode(False):  # so that a later training step may save it for its backward pass
                self._index[device] = torch.tensor(self.neurons, device=device)
        return self._index[device]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_index": {}}

    def extra_repr(self) -> str:
        return f"neurons={self.neurons}"


class ShiftedGatedMLP(nn.Module):
    """A gated MLP with the shift between gate and down projection; same children, same parameter names."""

    def __init__(self, mlp: Any, shift: nn.Module) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = mlp.gate_proj, mlp.up_proj, mlp.down_proj
        self.act_fn = mlp.act_fn
        self.shift = shift
        self.train(mlp.training)

    def forward(self, hidden_states: Tensor) -> Tensor:
        gated = self.act_fn(self.gate_proj(hidden_states)) * self.up_proj(hidden_states)
        return self.down_proj(self.shift(gated))
