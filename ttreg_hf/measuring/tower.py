"""A model's vision tower: its parts, its token layout and its widths, asked for once and handed on.

Letters: `B` images, `C` channels, `T` tokens, `N` patches, `H`, `W` height and width in pixels.
"""

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import logging

from ttreg_hf.applying import add_test_time_registers, shared_copy
from ttreg_hf.known.support import patched_class
from ttreg_hf.modeling.families import (
    Family,
    blocks_of_trunk,
    down_projection,
    family_of_trunk,
    find_attention,
    layout_of_trunk,
    trunk_name,
)
from ttreg_hf.modeling.modeling_ttreg import TTRegModelMixin
from ttreg_hf.modeling.registers import TokenLayout

_logger = logging.get_logger(__name__)


@dataclass(frozen=True, eq=False)
class VisionTower:
    """The vision tower of a model, stock or patched, with or without more around it.

    Args:
        model: that holds it.
        trunk: the part with embeddings and blocks; the model itself, or what is inside it.
        family: where the trunk keeps its parts.
        blocks: the transformer blocks; a block's index is its layer.
        down_projections: the second linear layer of each block's MLP; a neuron is one of its inputs.
        base_layout: of the tokens between the blocks, without test-time registers.
    """

    model: PreTrainedModel
    trunk: Any
    family: Family
    blocks: tuple[nn.Module, ...]
    down_projections: tuple[Any, ...]
    base_layout: TokenLayout

    @classmethod
    def of(cls, model: PreTrainedModel, name: str | None = None) -> "VisionTower":
        """The tower of a model, as the model is.

        Args:
            model: stock or patched.
            name: dotted path of the tower, in a stock model that holds several.

        Raises:
            ValueError: the model is of no supported family.
        """
        patched_class(model, name)  # what is no such model has no config to ask
        name = name if name is not None else getattr(model.config, "tower", None)
        trunk: Any = model.get_submodule(trunk_name(model, name))
        blocks = tuple(blocks_of_trunk(trunk))
        projections = tuple(map(down_projection, blocks))
        return cls(model, trunk, family_of_trunk(trunk), blocks, projections, layout_of_trunk(trunk))

    @classmethod
    def to_measure(
        cls,
        model: PreTrainedModel,
        *,
        name: str | None = None,
        attention: str | None = None,
        registers: bool = True,
    ) -> "VisionTower":
        """The tower of a private copy around the same weights: in eval mode, its outputs without registers.

        What is set or hooked there is neither seen by the given model nor by other threads.

        Args:
            model: stays as it is.
            name: as in `of`.
            attention: an implementation that the copy uses instead; only `"eager"` gives attention weights.
            registers: whether a patched model keeps its test-time registers; without them it is the base model.
        """
        tower = cls.of(shared_copy(model).eval(), name)
        if isinstance(tower.model, TTRegModelMixin):
            config = tower.model.registers.config
            config.output_registers = False
            if not (registers and cast(TTRegModelMixin, model).registers.active):  # as the caller has switched them
                config.num_test_time_registers = 0
        if attention is not None:
            tower.trunk.set_attn_implementation(attention)
        return tower

    def patched(self, register_neurons: Any, **options: Any) -> "VisionTower":
        """The tower of a patched twin; options as in `add_test_time_registers`."""
        return VisionTower.of(add_test_time_registers(self.model, register_neurons, **options))

    @property
    def num_layers(self) -> int:
        return len(self.blocks)

    @cached_property
    def widths(self) -> tuple[int, ...]:
        """How many neurons each layer has."""
        return tuple(projection.in_features for projection in self.down_projections)

    @property
    def num_channels(self) -> int:
        """Of the images that it takes."""
        return getattr(self.trunk.config, "num_channels", 3)  # BLIP-2 has no such field

    @property
    def layout(self) -> TokenLayout:
        """Layout of the tokens between the blocks now, test-time registers included."""
        if isinstance(self.model, TTRegModelMixin) and self.model.registers.active:
            return self.model.registers.layout
        return self.base_layout

    def rows_in_front(self, layer: int) -> int:
        """How many rows the attention of a layer reads in front of the tokens, in a pass that runs now."""
        if not isinstance(self.model, TTRegModelMixin):
            return 0
        registers = self.model.registers
        return int(registers.active and not registers.inserts and layer >= registers.config.constant_first_layer)

    @property
    def output_layout(self) -> TokenLayout:
        """Layout of the tokens that the trunk gives out now: where a head reads them always without registers."""
        if isinstance(self.model, TTRegModelMixin) and self.trunk is self.model:
            return self.model.token_layout
        return self.base_layout

    @property
    def default_detection_layer(self) -> int:
        """The family's, 0-based."""
        return self.family.detection_layer % self.num_layers

    def layer(self, name: str, layer: int) -> int:
        """A layer as a 0-based block; negative ones count from the end.

        Args:
            name: of the setting, for the message.
            layer: as given.

        Raises:
            ValueError: the model has no such layer.
        """
        if not -self.num_layers <= layer < self.num_layers:
            raise ValueError(
                f"`{name}` is a layer from {-self.num_layers} to {self.num_layers - 1} (this model has "
                f"{self.num_layers} blocks), got {layer}."
            )
        return layer % self.num_layers

    def attention(self, layer: int) -> Any:
        """The attention module of a block, which returns `(output, attention weights)`."""
        return find_attention(self.blocks[layer])

    def projection(self, layer: int, feature: str) -> tuple[nn.Module, slice]:
        """The linear layer of a block's attention that makes its keys, queries or values, and which of its outputs."""
        attention, part = self.attention(layer), ("query", "key", "value").index(feature)
        if not hasattr(attention, "qkv"):
            return getattr(attention, f"{feature[0]}_proj"), slice(None)
        width = attention.qkv.out_features // 3  # one layer makes all three
        return attention.qkv, slice(part * width, (part + 1) * width)

    @cached_property
    def _arguments(self) -> Mapping[str, Any]:
        return inspect.signature(self.trunk.forward).parameters

    def inputs(self, pixel_values: Tensor) -> dict[str, Any]:
        """What the trunk takes to see images of one size.

        Args:
            pixel_values: `(B, C, H, W)`; any size of whole patches.

        Returns:
            Arguments of the trunk's `forward`, on its device and in its dtype; SigLIP 2 (NaFlex) reads flattened
            patches, of which none is padding. Where positions have to be interpolated for this size, they are.

        Raises:
            ValueError: SigLIP 2, and height or width is not a whole number of patches.
        """
        self._warn_if_far(pixel_values)
        pixels = pixel_values.to(device=self.trunk.device, dtype=self.trunk.dtype)  # AIMv2 does not do it itself
        if "spatial_shapes" in self._arguments:
            return self._flattened_patches(pixels)
        inputs: dict[str, Any] = {"pixel_values": pixels}
        if "interpolate_pos_encoding" in self._arguments and not self._is_own_size(pixels):
            inputs["interpolate_pos_encoding"] = True
        return inputs

    def grid(self, pixel_values: Tensor) -> tuple[int, int]:
        """Height and width of images `(B, C, H, W)`, in patches."""
        height, width = self.base_layout.patch_size
        return pixel_values.shape[-2] // height, pixel_values.shape[-1] // width

    def _warn_if_far(self, pixels: Tensor) -> None:
        """Say once that images have over twice, or under half, the patches that the neurons were found with."""
        if not (isinstance(self.model, TTRegModelMixin) and self.model.registers.active):
            return
        calibrated = self.model.registers.config.calibrated_patches
        patches = math.prod(self.grid(pixels))
        if calibrated and not calibrated <= 2 * patches <= 4 * calibrated:
            _logger.warning_once(
                f"The register neurons of this model were found on images of {calibrated} patches. With more than "
                "twice as many, or less than half, nothing was measured: check this size with `ttreg verify`."
            )

    def _flattened_patches(self, pixels: Tensor) -> dict[str, Any]:
        height, width = self.base_layout.patch_size
        if pixels.shape[-2] % height or pixels.shape[-1] % width:
            raise ValueError(
                f"{type(self.model).__name__} takes images of whole patches of {height} x {width} pixels, got "
                f"{pixels.shape[-2]} x {pixels.shape[-1]}. Use the checkpoint's own image processor."
            )
        patches = pixels.unfold(2, height, height).unfold(3, width, width)  # (B, C, h, w, p, p)
        count, grid = len(patches), patches.shape[2:4]
        return {
            "pixel_values": patches.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2),  # (B, N, p * p * C)
            "pixel_attention_mask": pixels.new_ones(count, grid[0] * grid[1], dtype=torch.long),
            "spatial_shapes": torch.tensor([list(grid)] * count, device=pixels.device),
        }

    @property
    def training_size(self) -> tuple[int, int] | None:
        """Height and width, in pixels, that the config names; `None` where it names none, as SigLIP 2's (NaFlex)."""
        size = getattr(self.trunk.config, "image_size", None)
        if size is None:
            return None
        return (size, size) if isinstance(size, int) else (size[0], size[1])

    def _is_own_size(self, pixels: Tensor) -> bool:
        return tuple(pixels.shape[-2:]) == self.training_size
