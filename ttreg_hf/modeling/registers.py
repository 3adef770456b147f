"""Test-time registers for any Vision Transformer: the token layout, the shift, and the modules and hooks around them.

A pretrained ViT writes global information onto a few background patches. A sparse set of MLP neurons, the register
neurons, does it. This file gives the model empty extra tokens, the test-time registers, and moves those neurons'
activation from the patches to them. No weight changes. Source: Jiang et al. 2025 (arXiv 2506.08010).

Letters: `B` images, `T` tokens, `P` prefix tokens, `R` test-time registers, `N` patches, `D` hidden channels,
`F` neurons, `K` register neurons of one layer, `H` heads.
"""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask

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
        return self._put(empty, tokens_BTD, dim=1)

    def insert_into_mask(self, mask: Any) -> Any:
        """An attention mask in which all see the registers, and these see what anyone sees.

        Args:
            mask: 1 and 0, `(B, P + N)`; or `(B, H, P + N, P + N)`, boolean or added to the attention logits; or flex
                attention's, in which the registers see what the first patch sees.
        """
        if not isinstance(mask, Tensor):
            return self._insert_into_block_mask(mask)
        is_added = mask.ndim == 4 and mask.is_floating_point()
        columns = mask.new_full((*mask.shape[:-1], self.num_test_time_registers), 0 if is_added else 1)
        mask = self._put(columns, mask, dim=-1)
        if mask.ndim == 2 or mask.shape[2] == 1:
            return mask
        return self._put(mask.amax(dim=2, keepdim=True).expand(-1, -1, self.num_test_time_registers, -1), mask, dim=2)

    def _insert_into_block_mask(self, mask: Any) -> Any:
        first, behind = self.registers.start, self.registers.stop
        before = lambda token: torch.where(token < behind, token.clamp(max=first), token - (behind - first))  # noqa: E731
        sees = lambda image, head, query, key: (  # noqa: E731
            (key >= first) & (key < behind) | mask.mask_mod(image, head, before(query), before(key))
        )
        lengths = (length + behind - first for length in mask.shape[-2:])
        return create_block_mask(sees, mask.shape[0], None, *lengths, device=mask.kv_indices.device)

    def _put(self, registers: Tensor, tensor: Tensor, dim: int) -> Tensor:
        prefix, patches = tensor.tensor_split([self.num_prefix_tokens], dim)
        return torch.cat([prefix, registers, patches], dim)

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
            seen = mask.mask_mod(images[:, None], zero, zero + self.num_prefix_tokens, tokens)
            return seen.expand(len(images), len(tokens))  # a mask without padding may not look at the image
        if mask.ndim == 2:  # flash attention's
            return mask.bool()
        row_BHT = mask[:, :, min(self.num_prefix_tokens, mask.shape[2] - 1)]
        return (row_BHT > _HIDDEN if mask.is_floating_point() else row_BHT.bool()).any(dim=1)

    def remove(self, tensor: Tensor, dim: int = 1) -> Tensor:
        """Registers taken out of an axis of tokens: `(B, P + R + N, D)` -> `(B, P + N, D)`."""
        prefix, _, patches = tensor.tensor_split([self.registers.start, self.registers.stop], dim)
        return torch.cat([prefix, patches], dim)

    def remove_from_attention(self, attention_BHTT: Tensor) -> Tensor:
        """Rows and columns of the registers taken out; the rows that stay no longer sum to 1."""
        return self.remove(self.remove(attention_BHTT, dim=2), dim=3)

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
        in_patches = (height // self.patch_size[0], width // self.patch_size[1])
        grid = (height, width) if height * width == patches.shape[1] else in_patches
        if grid[0] * grid[1] != patches.shape[1]:
            raise ValueError(
                f"`patch_map` needs a grid of {patches.shape[1]} patches, got {grid[0]} x {grid[1]}. Give height and "
                f"width of `pixel_values`, and tokens that are laid out as {self}."
            )
        return patches.unflatten(1, grid).permute(0, 3, 1, 2)  # (B, N, D) -> (B, D, h, w)


def signed_max(acts_BTK: Tensor, seen_BT: Tensor | None = None, *, without: slice | None = None) -> Tensor:
    """Largest-magnitude activation over tokens, sign kept.

    Args:
        acts_BTK: activations of K neurons on T tokens, any float dtype.
        seen_BT: false for tokens that do not count; all count by default.
        without: a range of tokens that do not count either.

    Returns:
        `(B, K)`, in the units of the input; `signed_max(-a) == -signed_max(a)`. Of equal magnitudes the first wins.

    Source: Jiang et al. 2025 (arXiv 2506.08010), Algorithm 2, per image and per neuron.
    """
    magnitudes_BTK = acts_BTK.abs()
    if without is not None:
        magnitudes_BTK[:, without].fill_(-1)  # below every magnitude
    if seen_BT is not None:
        magnitudes_BTK = torch.where(seen_BT.unsqueeze(-1), magnitudes_BTK, -1)
    return acts_BTK.gather(1, magnitudes_BTK.argmax(dim=1, keepdim=True)).squeeze(1)


def _value_per_layer(acts_BTK: Tensor, layout: TokenLayout, seen_BT: Tensor | None) -> Tensor:
    as_one_neuron = acts_BTK.flatten(1).unsqueeze(-1)  # (B, T, K) -> (B, T * K, 1)
    seen = None if seen_BT is None else seen_BT.repeat_interleave(acts_BTK.shape[2], dim=1)
    return signed_max(as_one_neuron, seen).expand(-1, acts_BTK.shape[2])  # (B, K)


def _mean(patches_BNK: Tensor, seen_BN: Tensor | None) -> Tensor:
    if seen_BN is None:
        return patches_BNK.mean(dim=1, keepdim=True)
    seen_BN1 = seen_BN.unsqueeze(-1)
    # in its own dtype, under autocast too
    sums = torch.where(seen_BN1, patches_BNK, 0).sum(dim=1, keepdim=True, dtype=patches_BNK.dtype)
    return sums / seen_BN1.sum(dim=1, keepdim=True).clamp(min=1)


def _fill_outliers(patches_BNK: Tensor, seen_BN: Tensor | None) -> Tensor:
    mean = _mean(patches_BNK, seen_BN)
    deviation = _mean((patches_BNK - mean).square(), seen_BN).sqrt()
    return torch.where(patches_BNK > mean + deviation, mean, patches_BNK)


SHIFT_VALUES: dict[str, Callable[[Tensor, TokenLayout, Tensor | None], Tensor]] = {
    "per_neuron": lambda acts_BTK, layout, seen_BT: signed_max(acts_BTK, seen_BT, without=layout.registers),
    "per_layer": _value_per_layer,
}
SHIFT_FILLS: dict[str, Callable[[Tensor, Tensor, Tensor | None], Tensor]] = {
    "zero": lambda patches_BNK, zero, seen_BN: zero.expand_as(patches_BNK),
    "mean": lambda patches_BNK, zero, seen_BN: _mean(patches_BNK, seen_BN).expand_as(patches_BNK),
    "outliers": lambda patches_BNK, zero, seen_BN: _fill_outliers(patches_BNK, seen_BN),
    "keep": lambda patches_BNK, zero, seen_BN: patches_BNK,
}


class ShiftedNeurons(NamedTuple):
    """Constants that a shift reads, for activations of one device and dtype."""

    index_K: Tensor  # of the neurons
    zero: Tensor

    @classmethod
    def on(cls, device: torch.device, dtype: torch.dtype, neurons: list[int]) -> "ShiftedNeurons":
        return cls(torch.tensor(neurons, device=device), torch.zeros(1, device=device, dtype=dtype))


def shift_neurons(
    acts_BTF: Tensor,
    neurons: ShiftedNeurons,
    layout: TokenLayout,
    settings: Mapping[str, Any],
    seen_BT: Tensor | None = None,
    *,
    in_place: bool = False,
) -> Tensor:
    """Move the activation of some neurons from the patch tokens to the test-time registers.

    Args:
        acts_BTF: inputs of the MLP's down projection.
        neurons: the register neurons among the F.
        layout: of the T tokens.
        settings: `shift_value`, what the registers get, a key of `SHIFT_VALUES`; `shift_scale`, a factor on it; and
            `shift_fill`, what stays on the patches, a key of `SHIFT_FILLS`.
        seen_BT: false for padding, which enters neither value nor fill; its own activation is shifted as a patch's.
        in_place: write into `acts_BTF`.

    Returns:
        `(B, T, F)`; the prefix tokens and all other neurons are untouched.
    """
    acts_BTK = acts_BTF.index_select(-1, neurons.index_K)
    moved = SHIFT_VALUES[settings["shift_value"]](acts_BTK, layout, seen_BT).unsqueeze(1)  # (B, 1, K)
    moved = moved if settings["shift_scale"] == 1 else moved * settings["shift_scale"]
    prefix, _, patches = acts_BTK.tensor_split([layout.registers.start, layout.registers.stop], dim=1)
    seen_BN = None if seen_BT is None else seen_BT[:, layout.patches]
    left = SHIFT_FILLS[settings["shift_fill"]](patches, neurons.zero, seen_BN)
    shifted_BTK = torch.cat([prefix, *[moved] * layout.num_test_time_registers, left], dim=1)
    write = acts_BTF.index_copy_ if in_place else acts_BTF.index_copy
    return write(-1, neurons.index_K, shifted_BTK)


class _ForwardPass(threading.local):
    """What each thread has of its own: the switch, and what one hook leaves for a later one of the same forward pass.

    Args:
        enabled: whether the registers are on.
        began: whether this thread has begun a forward pass; autograd's and `DataParallel`'s only go on with one.
        mask: what the attention of the block that runs now gets; `None`: all tokens see all.
        states: a backbone's hidden states with the registers, while its feature maps are made of those without.
    """

    def __init__(self) -> None:  # runs once in each thread
        self.enabled, self.began = True, False
        self.mask: Any = None
        self.states: tuple = ()

    def __reduce__(self) -> Any:
        return _ForwardPass, ()


class Registers:
    """What the modules and hooks of one patched model share: its config, its layout, and where they are off.

    The methods named `before_...` and `on_...` are forward hooks. Nothing is kept from one forward pass to the next.
    """

    def __init__(self, config: Any, layout: TokenLayout, family: Any, backbone: bool, arguments: list[str]) -> None:
        self.config, self.settings = config, vars(config)  # reading a config's attributes one by one is slow
        self.layout, self.backbone = layout, backbone
        self.family, self.arguments = family, arguments  # names of the trunk's
        self.forward_pass = _ForwardPass()
        self.states: tuple = ()  # that of a pass that is traced; a compiler does not see what a thread has of its own
        self.off_in: list[int] = []  # threads that are in a block of `disable_test_time_registers`
        self.shift = shift_neurons  # or another that gives the same

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= {**state, "settings": vars(state["config"]), "off_in": []}  # a copy is on

    @property
    def active(self) -> bool:
        has_some = self.settings["num_test_time_registers"] and self.settings["register_neurons"]
        return bool(has_some and self.forward_pass.enabled)

    @property
    def output_layout(self) -> TokenLayout:
        """Layout of the tokens that the model gives out now."""
        kept = self.layout.num_test_time_registers if self.active and self.settings["output_registers"] else 0
        return TokenLayout(self.layout.num_prefix_tokens, kept, self.layout.patch_size)

    def before_trunk(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        """Let every token attend to the registers, where an attention mask over the base model's tokens is given."""
        if not torch.compiler.is_compiling() and not getattr(module, "_is_replica", False):  # of `DataParallel`
            self.forward_pass.began = True
        given = {**dict(zip(self.arguments, args, strict=False)), **kwargs}
        mask = given.get(self.family.mask)
        if mask is None or not self.active:
            return None
        return (), {**given, self.family.mask: self.layout.insert_into_mask(mask)}

    def before_attention(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Tell the shift of the same block, if it has one, which tokens are padding.

        Of all that sees the mask only this is run again when a block is recomputed for its gradients.
        """
        mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
        if not (mask is None and self.forward_pass.mask is None) and self.active:
            self.forward_pass.mask = mask

    def on_embeddings(self, module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        """Insert the registers."""
        if not self.active:
            return None
        if args and args[0].ndim == 2:
            raise ValueError("Test-time registers need one sequence of tokens an image, got images packed into one.")
        return self.layout.insert(output)

    def before_encoder(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        """Insert the registers into tokens and mask together, where the mask is made of the tokens."""
        if not self.active:
            return None
        tokens, mask = kwargs["inputs_embeds"], kwargs["attention_mask"]
        mask = None if mask is None else self.layout.insert_into_mask(mask)
        return args, {**kwargs, "inputs_embeds": self.layout.insert(tokens), "attention_mask": mask}

    def on_last_block(self, module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        """Remove the registers, before any norm, pooling or projector sees them."""
        return self.layout.remove(output) if self.active and not self.settings["output_registers"] else None

    def on_captured(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Remove the registers from the captured `hidden_states` and `attentions`."""
        if not self.active:
            return None
        if self.forward_pass.mask is not None:
            self.forward_pass.mask = None
        kept = self.settings["output_registers"] and not self.backbone
        return None if kept else _map_captured(output, self._without_registers)

    def on_trunk(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Remove kept registers from `last_hidden_state`, where a head reads it, or from an output of patches only."""
        if not (self.active and self.settings["output_registers"]):
            return None
        name, index = self.family.patches or ("last_hidden_state", 0)
        layout = replace(self.layout, num_prefix_tokens=0) if self.family.patches else self.layout
        if isinstance(output, tuple):
            return (*output[:index], layout.remove(output[index]), *output[index + 1 :])
        output[name] = layout.remove(output[name])
        return output

    def before_pooling(self, module: nn.Module, args: Any) -> Any:
        """Remove kept registers from the tokens that a pooling head attends to, and from its mask in any case."""
        if not self.active:
            return None
        tokens, *masks = args
        tokens = self.layout.remove(tokens) if self.settings["output_registers"] else tokens
        return (tokens, *(None if mask is None else self.layout.remove(mask) for mask in masks))

    def on_backbone(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Give out the hidden states with registers that `on_captured` put aside."""
        here: Any = self if torch.compiler.is_compiling() else self.forward_pass
        put_aside, here.states = here.states, ()
        if not (put_aside and self.active and self.settings["output_registers"]):
            return None

        def with_registers(states: tuple) -> tuple:
            pairs = () if not states or _are_attentions(states) else zip(states, put_aside, strict=True)
            return tuple(None if given is None else kept for given, kept in pairs) or states

        if isinstance(output, tuple):  # feature maps are a tuple too, and come first
            return (output[0], *map(with_registers, output[1:2]), *output[2:])
        return _map_captured(output, with_registers)

    def _without_registers(self, states: tuple) -> tuple:
        """Where they are kept, those of hidden states are put aside for `on_backbone`; all are read without."""
        kept = self.settings["output_registers"]
        if _are_attentions(states):
            return states if kept else tuple(map(self.layout.remove_from_attention, states))
        if kept and any(state is not None for state in states):  # attentions that were not captured are all None
            here: Any = self if torch.compiler.is_compiling() else self.forward_pass
            here.states = states
        inner = states if kept else states[:-1]  # the last block's output is clean then
        clean = tuple(None if state is None else self.layout.remove(state) for state in inner)
        return clean + states[len(inner) :]


def _are_attentions(states: tuple) -> bool:
    """`(B, H, T, T)` each, and not hidden states `(B, T, D)`; those not captured are `None`."""
    return any(state is not None and state.ndim == 4 for state in states)


def _map_captured(output: Any, change: Callable[[tuple], tuple]) -> Any:
    """Change the tuples of an output; a model output is changed in place, its `return_dict=False` form rebuilt."""
    if isinstance(output, tuple):
        return tuple(change(value) if isinstance(value, tuple) else value for value in output)
    for name in ("hidden_states", "attentions"):
        if output.get(name) is not None:
            output[name] = change(tuple(output[name]) if isinstance(output[name], list) else output[name])
    return output


class NeuronShift(nn.Module):
    """Moves the register neurons of one layer to the registers; the identity while they are off.

    Where no gradient is recorded it writes into its input, if that has just been made and nobody else reads it.
    """

    def __init__(self, neurons: list[int], registers: Registers) -> None:
        super().__init__()
        self.neurons = list(neurons)
        self.registers = registers
        self._made: dict[tuple[torch.device, torch.dtype], ShiftedNeurons] = {}

    def forward(self, acts_BTF: Tensor, *, in_place: bool = True) -> Tensor:
        registers, here = self.registers, self.registers.forward_pass
        if not registers.active:
            return acts_BTF
        if not torch.compiler.is_compiling() and registers.off_in and not here.began:
            raise RuntimeError(
                "`disable_test_time_registers()` holds in its own thread, but gradient checkpointing on CUDA and "
                "`DataParallel` use others. Use neither there, or `config.num_test_time_registers = 0` instead."
            )
        in_place = in_place and not (acts_BTF.requires_grad and torch.is_grad_enabled())
        neurons, seen_BT = self._constants_for(acts_BTF), registers.layout.seen_by_registers(here.mask)
        return registers.shift(acts_BTF, neurons, registers.layout, registers.settings, seen_BT, in_place=in_place)

    def _constants_for(self, acts_BTF: Tensor) -> ShiftedNeurons:
        """Made once a device and dtype, and not as buffers: they would be lost on the meta device."""
        kind = (acts_BTF.device, acts_BTF.dtype)
        if torch.compiler.is_compiling() or type(acts_BTF) is not Tensor:  # what is made of fake tensors is fake
            return ShiftedNeurons.on(*kind, self.neurons)
        if kind not in self._made:
            with torch.inference_mode(False):  # so that a later training step may save it for its backward pass
                self._made[kind] = ShiftedNeurons.on(*kind, self.neurons)
        return self._made[kind]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_made": {}}

    def extra_repr(self) -> str:
        return f"neurons={self.neurons}, by={self.registers.shift.__name__}"


class ShiftedActivation(nn.Sequential):
    """An activation function, which has no weights, and the shift behind it."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        activation, shift = self
        acts_BTF = activation(hidden_states)
        return shift(acts_BTF, in_place=acts_BTF is not hidden_states and not activation._forward_hooks)


class ShiftedGatedMLP(nn.Module):
    """A gated MLP with the shift between gate and down projection; same children, same parameter names."""

    def __init__(self, mlp: Any, shift: nn.Module) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = mlp.gate_proj, mlp.up_proj, mlp.down_proj
        self.act_fn, self.shift = mlp.act_fn, shift
        self.train(mlp.training)

    def forward(self, hidden_states: Tensor) -> Tensor:
        gated = self.act_fn(self.gate_proj(hidden_states)) * self.up_proj(hidden_states)
        return self.down_proj(self.shift(gated))
