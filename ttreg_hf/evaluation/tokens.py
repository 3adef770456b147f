"""What tasks read of a model: token states by layer, the final patch features, the global feature.

Letters: `B` images, `T` tokens as the blocks see them (test-time registers included), `N` patches, `D` channels, `h`,
`w` patches in height and width.
"""

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ttreg_hf.families import blocks_of, image_inputs, inner_layout, trunk_of
from ttreg_hf.modeling.test_time_registers import TokenLayout
from ttreg_hf.modeling.ttreg_base import TTRegModelMixin, find_attention

FEATURES = ("key", "query", "value", "out")
_PROJECTIONS = {"key": "k_proj", "query": "q_proj", "value": "v_proj"}


@dataclass(frozen=True)
class Tokens:
    """One batch; float32.

    Args:
        states: `(feature, layer)` -> `(B, T, D)`: the attention's keys, queries or values, all heads, or the block's
            raw output (`"out"`).
        layout: of these tokens.
        patches_BDhw: the final patch features that heads read.
        global_BD: CLS after the final norm; of a model without it what its pooling head gives, else the mean patch.
    """

    states: dict[tuple[str, int], Tensor]
    layout: TokenLayout
    patches_BDhw: Tensor
    global_BD: Tensor


@torch.no_grad()
def read_tokens(model: PreTrainedModel, pixel_values: Tensor, wanted: Iterable[tuple[str, int]] = ()) -> Tokens:
    """Run a model's trunk and read its tokens.

    Args:
        model: stock, or patched with `output_registers` off.
        pixel_values: `(B, 3, H, W)`.
        wanted: features and layers; layers are 0-based, negative ones count from the end.

    Raises:
        ValueError: an unknown feature, or a layer that the model does not have.
    """
    with _states(model, list(wanted)) as states:
        trunk = trunk_of(model)
        outputs = trunk(**image_inputs(model, pixel_values.to(device=trunk.device, dtype=trunk.dtype)))
    inside = inner_layout(model)
    outside = model.token_layout if isinstance(model, TTRegModelMixin) else inside
    if "feature_maps" in outputs:
        patches_BDhw = outputs["feature_maps"][-1]
        return Tokens(states, inside, patches_BDhw.float(), patches_BDhw.float().mean((2, 3)))
    tokens_BTD = outputs["last_hidden_state"].float()
    patches_BDhw = outside.patch_map(tokens_BTD, *pixel_values.shape[-2:])
    return Tokens(states, inside, patches_BDhw, _global_feature(trunk, outputs, tokens_BTD, outside))


def _global_feature(trunk: Any, outputs: Any, tokens_BTD: Tensor, layout: TokenLayout) -> Tensor:
    pooled = outputs.get("pooler_output")
    if pooled is not None and not hasattr(trunk, "pooler"):  # ViT's pooler is a layer that most checkpoints lack
        return pooled.float()
    if layout.num_prefix_tokens:
        return tokens_BTD[:, layout.prefix][:, 0]
    return tokens_BTD[:, layout.patches].mean(1)


@contextmanager
def _states(model: PreTrainedModel, wanted: list[tuple[str, int]]) -> Generator[dict[tuple[str, int], Tensor]]:
    blocks, handles = blocks_of(model), []
    seen: dict[tuple[str, int], Tensor] = {}
    try:
        for feature, layer in wanted:
            if feature not in FEATURES:
                raise ValueError(f"`feature` is one of {', '.join(FEATURES)}, got {feature!r}.")
            if not -len(blocks) <= layer < len(blocks):
                raise ValueError(
                    f"`layer` names layer {layer}, but this model has {len(blocks)} (0 to {len(blocks) - 1}). Give "
                    "one of these."
                )
            module = _module(blocks[layer], feature)
            # before the hook of a patched model that takes the registers out after the last block
            handles.append(module.register_forward_hook(_keep(seen, (feature, layer)), prepend=True))
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _module(block: nn.Module, feature: str) -> nn.Module:
    return block if feature == "out" else getattr(find_attention(block), _PROJECTIONS[feature])


def _keep(seen: dict[Any, Tensor], name: tuple[str, int]) -> Any:
    def record(module: Any, args: Any, output: Any) -> None:
        seen[name] = (output[0] if isinstance(output, tuple) else output).float()

    return record
