"""Records what a forward pass makes of some images: norms, activations, token states, attention, final features.

Measuring is hooks; they are there only while the recorder is open, and come before the hook of a patched model that
takes the registers out. Everything stays on the model's device.

Letters: `L` blocks, `B` images, `T` tokens (as the blocks see them, test-time registers included), `F` neurons,
`D` channels, `H` heads, `h`, `w` patches in height and width.
"""

import functools
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ttreg_hf.measuring.feature import final_patches, pooled_feature
from ttreg_hf.measuring.hooks import Hooks
from ttreg_hf.measuring.interpolation import interpolated
from ttreg_hf.measuring.tower import VisionTower

if TYPE_CHECKING:
    from ttreg_hf.measuring.outlier_rule import OutlierRule

BLOCK_OUTPUT = "out"
STATES = ("key", "query", "value", BLOCK_OUTPUT)


@dataclass(frozen=True)
class Recording:
    """One batch.

    Args:
        norms_LBT: L2 norm over channels of the raw output of each block asked for, float32.
        acts_by_layer: inputs of the down projection of the recorded layers, `(B, T, F)`, in the model's dtype.
        embedding_norms_BT: L2 norm over channels of what the first block reads, float32.
        grid: height and width of the images, in patches.
        states: `(state, layer)` -> `(B, T, D)` float32: the attention's keys, queries or values, all heads, or the
            block's raw output (`"out"`).
        attentions: layer -> `(B, T, T)`, attention weights, mean over heads.
        feature_BD: see `pooled_feature`; `None` if not all blocks ran.
        patches_BDhw: see `final_patches`, float32; `None` if not asked for.
    """

    norms_LBT: Tensor
    acts_by_layer: dict[int, Tensor]
    embedding_norms_BT: Tensor
    grid: tuple[int, int]
    states: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    attentions: dict[int, Tensor] = field(default_factory=dict)
    feature_BD: Tensor | None = None
    patches_BDhw: Tensor | None = None

    def of(self, images: slice) -> "Recording":
        """The same of some of the images."""
        parts = {each.name: getattr(self, each.name) for each in fields(self)}
        whole = {"norms_LBT": self.norms_LBT[:, images], "grid": self.grid}
        return Recording(**{name: _rows(part, images) for name, part in parts.items() if name not in whole}, **whole)


def _rows(part: Any, images: slice) -> Any:
    if isinstance(part, dict):
        return {key: tensor[images] for key, tensor in part.items()}
    return None if part is None else part[images]


class _Enough(Exception):
    """Ends a forward pass after the last block that is needed."""


class Recorder(Hooks):
    """`with Recorder(tower, layers) as recorder: recording = recorder(pixel_values)`.

    Args:
        tower: stock or patched.
        layers: whose activations are recorded.
        norm_layers: whose norms are recorded, in order; all by default.
        states: `(state, layer)` of token states that are recorded; a state is one of `STATES`.
        attention_layers: whose attention weights are recorded; the tower must use eager attention.
        patches: whether the final patch features are recorded.
        stop_after: last block that runs; all by default.
        interpolate: which patches are read as the mean of their ordinary neighbours, by their norm alone; `None`: all
            are read as they are. See `interpolation.py`.

    Raises:
        ValueError: an unknown state, or a layer that the model does not have.
    """

    def __init__(
        self,
        tower: VisionTower,
        layers: Iterable[int] = (),
        *,
        norm_layers: Iterable[int] | None = None,
        states: Iterable[tuple[str, int]] = (),
        attention_layers: Iterable[int] = (),
        patches: bool = False,
        stop_after: int | None = None,
        interpolate: "OutlierRule | None" = None,
    ) -> None:
        super().__init__()
        self.tower = tower
        normed = range(tower.num_layers) if norm_layers is None else norm_layers
        self._layers = [tower.layer("layers", layer) for layer in layers]
        self._norm_layers = [tower.layer("norm_layers", layer) for layer in normed]
        self._states = [_checked_state(tower, *state) for state in states]
        self._attention_layers = [tower.layer("attention_layers", layer) for layer in attention_layers]
        self._patches = patches
        self._stop_after = stop_after
        self._interpolate = interpolate
        self._recorded: dict[tuple[str, Any], Tensor] = {}

    def __enter__(self) -> "Recorder":
        tower, handles = self.tower, self._handles
        handles.append(tower.blocks[0].register_forward_pre_hook(self._record_embeddings, with_kwargs=True))
        detection = [] if self._interpolate is None else [self._interpolate.detection_layer]
        for layer in {*self._norm_layers, *detection}:
            handles.append(self._on_output(tower.blocks[layer], ("norms", layer), token_norms))
        for layer in self._layers:
            record = self._record_input(("acts", layer))
            handles.append(tower.down_projections[layer].register_forward_pre_hook(record))
        for state, layer in self._states:
            module, part = (
                (tower.blocks[layer], slice(None)) if state == BLOCK_OUTPUT else tower.projection(layer, state)
            )
            keep = functools.partial(self._part, layer if state != BLOCK_OUTPUT else None, part)
            handles.append(self._on_output(module, (state, layer), keep))
        for layer in self._attention_layers:
            keep = functools.partial(self._mean_over_heads, layer)
            handles.append(self._on_output(tower.attention(layer), ("attention", layer), keep, 1))
        if self._stop_after is not None and self._stop_after < tower.num_layers - 1:
            handles.append(tower.blocks[self._stop_after].register_forward_hook(_stop))
        return self

    @torch.no_grad()
    def __call__(self, pixel_values: Tensor) -> Recording:
        """Run the images `(B, 3, H, W)` through the tower."""
        tower, grid = self.tower, (pixel_values.shape[-2], pixel_values.shape[-1])
        ends: dict[str, Tensor] = {}
        try:
            outputs = tower.trunk(**tower.inputs(pixel_values))
            ends["feature_BD"] = pooled_feature(tower, outputs, grid)
            if self._patches:
                ends["patches_BDhw"] = final_patches(tower, outputs, grid).float()
        except _Enough:
            pass
        finally:  # nothing is kept alive here, after a failure neither
            recorded, self._recorded = self._recorded, {}
        recording = Recording(
            norms_LBT=_stacked(
                [recorded["norms", layer] for layer in self._norm_layers], recorded["embeddings", None]
            ),
            acts_by_layer={layer: recorded["acts", layer] for layer in self._layers},
            embedding_norms_BT=recorded["embeddings", None],
            grid=tower.grid(pixel_values),
            states={state: recorded[state] for state in self._states},
            attentions={layer: recorded["attention", layer] for layer in self._attention_layers},
            **ends,
        )
        if self._interpolate is None:
            return recording
        outliers_BT = self._interpolate.above(recorded["norms", self._interpolate.detection_layer], tower.layout)
        return interpolated(recording, outliers_BT, tower.layout, grid)

    def _record_embeddings(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        self._recorded["embeddings", None] = token_norms(args[0] if args else kwargs["hidden_states"])

    def _record_input(self, name: tuple[str, Any]) -> Any:
        def record(module: Any, args: Any) -> None:
            self._recorded[name] = args[0]

        return record

    def _part(self, layer: int | None, part: slice, output: Tensor) -> Tensor:
        """Of a token state, in an attention without the row that it reads in constant mode."""
        front = 0 if layer is None else self.tower.rows_in_front(layer)
        return output[..., front:, part].float()

    def _mean_over_heads(self, layer: int, weights_BHTT: Tensor) -> Tensor:
        front = self.tower.rows_in_front(layer)
        return weights_BHTT[..., front:, front:].float().mean(dim=1)

    def _on_output(self, module: nn.Module, name: tuple[str, Any], keep: Any, part: int = 0) -> Any:
        """Record what is to be kept of a module's output, or of one part of it, before other hooks change it."""

        def record(module: Any, args: Any, output: Any) -> None:
            self._recorded[name] = keep(output[part] if isinstance(output, tuple) else output)

        return module.register_forward_hook(record, prepend=True)


def _checked_state(tower: VisionTower, state: str, layer: int) -> tuple[str, int]:
    if state not in STATES:
        raise ValueError(f"`feature` is one of {', '.join(STATES)}, got {state!r}.")
    return state, tower.layer("layer", layer)


def _stacked(norms: list[Tensor], like_BT: Tensor) -> Tensor:
    return torch.stack(norms) if norms else like_BT.new_empty(0, *like_BT.shape)


def token_norms(hidden_states: Tensor) -> Tensor:
    """L2 norm over channels, float32: `(B, T, D)` -> `(B, T)`."""
    wide = torch.promote_types(hidden_states.dtype, torch.float32)  # a float64 model's norms are not summed in less
    return torch.linalg.vector_norm(hidden_states, dim=-1, dtype=wide).float()


def _stop(module: Any, args: Any, output: Any) -> None:
    raise _Enough
