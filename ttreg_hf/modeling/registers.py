"""Test-time registers for any Vision Transformer: the token layout, the shift, and the modules and hooks around them.

A pretrained ViT writes global information onto a few background patches. A sparse set of MLP neurons, the register
neurons, does it. This file gives the model empty extra tokens, the test-time registers, and moves those neurons'
activation from the patches to them. No weight changes. In constant mode there is no such token: each attention reads
one more row, the same for every image. Source: Jiang et al. 2025 (arXiv 2506.08010).

Letters: `B` images, `T` tokens, `P` prefix tokens, `R` test-time registers, `N` patches, `D` hidden channels,
`F` neurons, `K` register neurons of one layer, `H` heads.
"""

import inspect
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask

_HIDDEN = -1e4  # an additive attention mask hides a token with this or less
_OUTSTANDING = 8  # a spike is where a row of a position table differs by so many times its median difference


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

    def insert(self, tokens_BTD: Tensor, start_D: Tensor | None = None) -> Tensor:
        """Registers put in, each this vector, or zeros: `(B, P + N, D)` -> `(B, P + R + N, D)`."""
        start_D = tokens_BTD.new_zeros(tokens_BTD.shape[2]) if start_D is None else start_D.to(tokens_BTD)
        return self._put(start_D.expand(tokens_BTD.shape[0], self.num_test_time_registers, -1), tokens_BTD, dim=1)

    def insert_into_mask(self, mask: Any) -> Any:
        """An attention mask in which all see the registers, and these see what anyone sees.

        Args:
            mask: 1 and 0, `(B, P + N)`; or `(B, H, P + N, P + N)`, boolean or added to the attention logits; or flex
                attention's, in which the registers see what the first patch sees.
        """
        if not isinstance(mask, Tensor):
            return None if mask is None else self._insert_into_block_mask(mask)
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
        if not self.num_prefix_tokens:
            return torch.cat([registers, tensor], dim)
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
            raise ValueError(f"Give `patch_map` `pixel_values`' size: {patches.shape[1]} patches, got {grid}, {self}.")
        return patches.unflatten(1, grid).permute(0, 3, 1, 2)  # (B, N, D) -> (B, D, h, w)


_IN_FRONT = TokenLayout(0, 1, (1, 1))  # where the constant row goes


def signed_max(acts_BTK: Tensor, seen_BT: Tensor | None = None, *, without: slice = slice(0)) -> Tensor:
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
    magnitudes_BTK[:, without].fill_(-1)  # below every magnitude
    if seen_BT is not None:
        magnitudes_BTK = torch.where(seen_BT.unsqueeze(-1), magnitudes_BTK, -1)
    return acts_BTK.gather(1, magnitudes_BTK.argmax(dim=1, keepdim=True)).squeeze(1)


def _value_per_layer(acts_BTK: Tensor, layout: TokenLayout, seen_BT: Tensor | None) -> Tensor:
    seen = None if seen_BT is None else seen_BT.repeat_interleave(acts_BTK.shape[2], dim=1)
    # as one neuron: (B, T, K) -> (B, T * K, 1) -> (B, 1) -> (B, K)
    return signed_max(acts_BTK.flatten(1).unsqueeze(-1), seen).expand(-1, acts_BTK.shape[2])


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
SHIFT_FILLS: dict[str, Callable[[Tensor, Tensor | None], Tensor]] = {
    "zero": lambda patches_BNK, seen_BN: torch.zeros_like(patches_BNK),
    "mean": lambda patches_BNK, seen_BN: _mean(patches_BNK, seen_BN).expand_as(patches_BNK),
    "outliers": _fill_outliers,
    "keep": lambda patches_BNK, seen_BN: patches_BNK,
}


def shift_neurons(
    acts_BTF: Tensor, index_K: Tensor, layout: TokenLayout, settings: Any, seen_BT: Tensor | None, *, in_place: bool
) -> Tensor:
    """Move the activation of some neurons from the patch tokens to the test-time registers.

    Args:
        acts_BTF: inputs of the MLP's down projection.
        index_K: the register neurons among the F.
        layout: of the T tokens; in constant mode there is no register among them, and the patches become 0.
        settings: a mapping. `shift_value`: what the registers get, a key of `SHIFT_VALUES`; `shift_scale`: a factor
            on it; `shift_fill`: what stays on the patches, a key of `SHIFT_FILLS`.
        seen_BT: false for padding, which enters neither value nor fill; its own activation is shifted as a patch's.
        in_place: write into `acts_BTF`.

    Returns:
        `(B, T, F)`; the prefix tokens and all other neurons are untouched.
    """
    acts_BTF = acts_BTF if in_place else acts_BTF.clone()
    if not layout.num_test_time_registers:
        acts_BTF[:, layout.patches].index_fill_(-1, index_K, 0)
        return acts_BTF
    acts_BTK = acts_BTF.index_select(-1, index_K)
    value_BK = SHIFT_VALUES[settings["shift_value"]](acts_BTK, layout, seen_BT)
    value_BK = value_BK if settings["shift_scale"] == 1 else value_BK * settings["shift_scale"]
    prefix, moved, patches = acts_BTK.tensor_split([layout.registers.start, layout.registers.stop], dim=1)
    moved = value_BK.unsqueeze(1).expand_as(moved)
    seen_BN = None if seen_BT is None else seen_BT[:, layout.patches]
    shifted_BTK = torch.cat([prefix, moved, SHIFT_FILLS[settings["shift_fill"]](patches, seen_BN)], dim=1)
    return acts_BTF.index_copy_(-1, index_K, shifted_BTK)


def position_spikes(embeddings: nn.Module, positions: list[list[int]]) -> Tensor:
    """What rows of a learned position table have over the ordinary rows around them, in the channels that stand out.

    Args:
        embeddings: the module that holds the table, which is square; rows for prefix tokens come first.
        positions: `[row, column]` of the spikes; no spike counts as an ordinary row.

    Returns:
        `(1, D, h, w)` float32; 0 elsewhere, and in a channel whose excess is not far above the median channel's.
    """
    table = next(table for name, table in embeddings.named_parameters() if name.startswith("position_embedding"))
    side = int((table.numel() // table.shape[-1]) ** 0.5)
    table_1Dhw = table.float().flatten(0, -2)[-(side**2) :].T.unflatten(1, (side, side)).unsqueeze(0)
    ordinary_11hw = torch.ones_like(table_1Dhw[:, :1])
    rows, columns = map(list, zip(*positions, strict=True))
    ordinary_11hw[..., rows, columns] = 0
    sums, counts = (nn.functional.avg_pool2d(map_, 3, 1, 1) for map_ in (table_1Dhw * ordinary_11hw, ordinary_11hw))
    excess_1Dhw = (table_1Dhw - sums / counts.clamp(min=1 / 9)) * (1 - ordinary_11hw)
    typical_11hw = excess_1Dhw.abs().median(dim=1, keepdim=True)[0]
    return torch.where(excess_1Dhw.abs() > _OUTSTANDING * typical_11hw, excess_1Dhw, 0)


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

    The methods named `before_...`, `after_...` and `on_...` are forward hooks. Nothing is kept from one forward pass
    to the next.
    """

    def __init__(self, config: Any, layout: TokenLayout, trunk: Any, family: Any, backbone: bool) -> None:
        self.config, self.layout, self.family, self.backbone = config, layout, family, backbone
        self.settings = vars(config)  # reading a config's attributes one by one is slow
        self.arguments = list(inspect.signature(trunk.forward).parameters)
        self.forward_pass = _ForwardPass()
        self.constants: Any = None  # the trunk's buffer; the trunk is not kept, or the two would keep each other alive
        self.grown: tuple[Any, Any] = (None, None)  # the mask of this pass, and with a constant row in front
        self.states: tuple = ()  # that of a pass that is traced; a compiler does not see what a thread has of its own
        self.hooks: list[Any] = []  # on attentions
        self.off_in: list[int] = []  # threads that are in a block of `disable_test_time_registers`
        self.shift = shift_neurons  # or another that gives the same

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "hooks": [hook for hook in self.hooks if hook.hooks_dict_ref() is not None]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= {**state, "settings": vars(state["config"]), "off_in": []}  # a copy is on

    @property
    def active(self) -> bool:
        has_some = self.settings["register_neurons"] or self.settings["fixed_positions"]
        return bool(self.settings["num_test_time_registers"] and has_some and self.forward_pass.enabled)

    @property
    def inserts(self) -> bool:
        """Whether there are tokens: not in constant mode."""
        return self.active and self.settings["test_time_register_mode"] == "token"

    @property
    def output_layout(self) -> TokenLayout:
        """Layout of the tokens that the model gives out now."""
        kept = self.layout.num_test_time_registers if self.inserts and self.settings["output_registers"] else 0
        return TokenLayout(self.layout.num_prefix_tokens, kept, self.layout.patch_size)

    def before_trunk(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        """Let every token attend to the registers, where an attention mask over the base model's tokens is given."""
        if not torch.compiler.is_compiling() and not getattr(module, "_is_replica", False):  # of `DataParallel`
            self.forward_pass.began = True
        if self.active and not self.inserts:  # an error where a config was given another mode and nothing else
            self.constants = module.test_time_register_constants  # left there for threads where the registers are on
        # without `strict`, which torch before 2.10 does not compile
        given = {**dict(zip(self.arguments, args)), **kwargs}  # noqa: B905
        mask = given.get(self.family.mask)
        if mask is None or not self.inserts:
            return None
        return (), {**given, self.family.mask: self.layout.insert_into_mask(mask)}

    def hook_attentions(self, attentions: list[nn.Module]) -> None:
        """Put hooks where they are needed, in place of earlier ones: one that does nothing costs time too.

        In constant mode each layer has one, with its number: blocks that are compiled one by one share a graph else.
        """
        while self.hooks:
            self.hooks.pop().remove()
        before: dict[int, Any] = {layer: self.on_mask for layer, _ in self.settings["register_neurons"]}
        if self.settings["test_time_register_mode"] == "constant":
            first = self.settings["constant_first_layer"]
            before = {layer: partial(self.before_attention, layer - first) for layer in range(len(attentions))}
            self.hooks = [
                each.register_forward_hook(self.after_attention, prepend=True) for each in attentions[first:]
            ]
        self.hooks += [attentions[at].register_forward_pre_hook(before[at], with_kwargs=True) for at in before]

    def on_mask(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Tell the shift of the same block which tokens are padding.

        Of all that sees the mask only this is run again when a block is recomputed for its gradients.
        """
        mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
        if not (mask is None and self.forward_pass.mask is None) and self.inserts:
            self.forward_pass.mask = mask

    def before_attention(self, row: int, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        """Put a constant row in front of the tokens."""
        if row < 0 or self.inserts or not self.active:
            return None
        given = {**dict(zip(("hidden_states", "attention_mask"), args)), **kwargs}  # noqa: B905
        given["hidden_states"] = _IN_FRONT.insert(given["hidden_states"], self.constants[row])
        # read once, because threads share it; made once, because all blocks get the same mask
        mask, known = given.get("attention_mask"), self.grown
        self.grown = known = known if known[0] is mask else (mask, _IN_FRONT.insert_into_mask(mask))
        return (), given if mask is None else {**given, "attention_mask": known[1]}

    def after_attention(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Cut the constant row from tokens and attention weights; what is left of these no longer sums to 1."""
        if self.inserts or not self.active:
            return None
        tokens_BTD, weights_BHTT, *others = output
        return tokens_BTD[:, 1:], None if weights_BHTT is None else weights_BHTT[:, :, 1:, 1:], *others

    def on_embeddings(self, module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        """Take the spikes of fixed positions out, and insert the registers; the largest spike is their start."""
        if not self.active:
            return None
        if args and args[0].ndim == 2:
            raise ValueError("Test-time registers need one sequence of tokens an image, got images packed into one.")
        output, start_D = self._without_spikes(module, output, *args[:2])
        return self.layout.insert(output, start_D) if self.inserts else output

    def _without_spikes(self, module: nn.Module, tokens_BTD: Tensor, pixels: Tensor, shapes: Any = None) -> Any:
        """The tokens without what spikes add where the table is interpolated for the images; and the largest spike."""
        if not self.settings["fixed_positions"]:
            return tokens_BTD, None
        spikes_1Dhw = position_spikes(module, self.settings["fixed_positions"])
        tokens_BTD, patches = tokens_BTD.clone(), slice(self.layout.num_prefix_tokens, None)
        grid = [length // patch for length, patch in zip(pixels.shape[-2:], self.layout.patch_size, strict=True)]
        is_naflex = pixels.ndim == 3  # of SigLIP 2: patches, and each image's grid
        for image, size in enumerate(shapes.tolist()) if is_naflex else [(slice(None), grid)]:
            mode = "bilinear" if is_naflex else "bicubic"
            added_DN = nn.functional.interpolate(spikes_1Dhw, size, mode=mode, antialias=is_naflex).flatten(2)[0]
            tokens_BTD[image, patches][..., : added_DN.shape[1], :] -= added_DN.T.to(tokens_BTD)
        largest = spikes_1Dhw.norm(dim=1).argmax().unsqueeze(0)
        return tokens_BTD, spikes_1Dhw.flatten(2)[0].index_select(1, largest)[:, 0]

    def before_encoder(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        """Insert the registers into tokens and mask together, where the mask is made of the tokens."""
        if not self.inserts:
            return None
        mask = self.layout.insert_into_mask(kwargs["attention_mask"])
        return args, {**kwargs, "inputs_embeds": self.layout.insert(kwargs["inputs_embeds"]), "attention_mask": mask}

    def on_last_block(self, module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        """Remove the registers, before any norm, pooling or projector sees them."""
        return self.layout.remove(output) if self.inserts and not self.settings["output_registers"] else None

    def on_captured(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Remove the registers from the captured `hidden_states` and `attentions`."""
        self.grown = None, None
        if self.forward_pass.mask is not None:
            self.forward_pass.mask = None
        kept = not self.inserts or (self.settings["output_registers"] and not self.backbone)
        return None if kept else _map_captured(output, self._without_registers)

    def on_trunk(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Remove kept registers from `last_hidden_state`, where a head reads it, or from an output of patches only."""
        if not (self.inserts and self.settings["output_registers"]):
            return None
        name, index = self.family.patches or ("last_hidden_state", 0)
        layout = replace(self.layout, num_prefix_tokens=0) if self.family.patches else self.layout
        if isinstance(output, tuple):
            return (*output[:index], layout.remove(output[index]), *output[index + 1 :])
        output[name] = layout.remove(output[name])
        return output

    def before_pooling(self, module: nn.Module, args: Any) -> Any:
        """Remove kept registers from the tokens that a pooling head attends to, and from its mask in any case."""
        if not self.inserts:
            return None
        tokens, *masks = args
        tokens = self.layout.remove(tokens) if self.settings["output_registers"] else tokens
        return (tokens, *(None if mask is None else self.layout.remove(mask) for mask in masks))

    def on_backbone(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Give out the hidden states with registers that `on_captured` put aside."""
        here: Any = self if torch.compiler.is_compiling() else self.forward_pass
        put_aside, here.states = here.states, ()
        if not (put_aside and self.inserts and self.settings["output_registers"]):
            return None

        def with_registers(states: tuple) -> tuple:
            both = () if not states or _are_attentions(states) else zip(states, put_aside[-len(states) :], strict=True)
            return tuple(None if given is None else kept for given, kept in both) or states

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
        return (*(None if state is None else self.layout.remove(state) for state in inner), *states[len(inner) :])


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
        self._made: dict[torch.device, Tensor] = {}

    def forward(self, acts_BTF: Tensor, *, in_place: bool = True) -> Tensor:
        registers, here = self.registers, self.registers.forward_pass
        if not registers.active:
            return acts_BTF
        if not torch.compiler.is_compiling() and registers.off_in and not here.began:
            raise RuntimeError(
                "`disable_test_time_registers()` holds in its own thread, but `DataParallel` and CUDA checkpointing "
                "use others. Use neither there, or `config.num_test_time_registers = 0` instead."
            )
        in_place = in_place and not (acts_BTF.requires_grad and torch.is_grad_enabled())
        index_K, seen_BT = self._index_for(acts_BTF), registers.layout.seen_by_registers(here.mask)
        return registers.shift(acts_BTF, index_K, registers.layout, registers.settings, seen_BT, in_place=in_place)

    def _index_for(self, acts_BTF: Tensor) -> Tensor:
        """Made once a device, and not a buffer: it would be lost on the meta device."""
        device, made = acts_BTF.device, self._made
        if torch.compiler.is_compiling() or type(acts_BTF) is not Tensor:  # what is made of fake tensors is fake
            made = {}
        if device not in made:
            with torch.inference_mode(False):  # so that a later training step may save it for its backward pass
                made[device] = torch.tensor(self.neurons, device=device)
        return made[device]

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
