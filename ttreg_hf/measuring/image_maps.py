"""What the pictures show, as tensors: patch norms, attention, features and neurons of one model, as maps of an image.

Letters: `B` images, `T` tokens, `N` patches, `h`, `w` patches in height and width, `D` hidden, `F` neurons,
`L` blocks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ttreg_hf.measuring.outlier_rule import OutlierRule
from ttreg_hf.measuring.recorder import Recorder, Recording
from ttreg_hf.measuring.tower import VisionTower
from ttreg_hf.modeling.registers import TokenLayout


@dataclass(frozen=True, eq=False)
class BlockMaps:
    """What `ImageMaps` shows of one block, of all of them; float32 on the CPU.

    Args:
        norms_Lhw: L2 norm over channels of each block's raw output.
        attention_Lhw: as `attention`, of each block.
        on_register_L: share of it that went to the test-time registers; 0 without them.
    """

    norms_Lhw: Tensor
    attention_Lhw: Tensor
    on_register_L: Tensor


@dataclass(frozen=True)
class ImageMaps:
    """One image, as one model sees it; float32 on the CPU.

    Args:
        patch_norms: `(h, w)`, L2 norm over channels of the detection block's raw output.
        attention: `(h, w)`, last block, mean over heads: what CLS gives to each patch, a share of 1. In models without
            CLS what each patch receives, mean over the patches that ask.
        register_attention: share of the same attention that went to the test-time registers; `None` without them.
        features: `(h, w, D)`, the model's final patch features.
        has_cls: whether `attention` is what CLS gives.
        pooled_D: the image's feature, as in `pooled_feature`.
        neuron_activation: `(h, w)`, a neuron's activation before any shift; `None` if none was asked for.
        rollout: `(h, w)`, as `attention`, rolled out over all blocks; `None` if it was not asked for.
        blocks: norms and attention of every block; `None` if they were not asked for.
    """

    patch_norms: Tensor
    attention: Tensor
    register_attention: float | None
    features: Tensor
    has_cls: bool
    pooled_D: Tensor
    neuron_activation: Tensor | None = None
    rollout: Tensor | None = None
    blocks: BlockMaps | None = None


class MapRecorder:
    """Records what maps are made of; `with MapRecorder(model, detection_layer=-1) as maps: maps(pixel_values)`.

    Runs a private copy of the model with eager attention, which alone gives attention weights.

    Args:
        model: of a supported family, stock or patched; stays as it is.
        detection_layer: block whose output is measured, 0-based; negative ones count from the end.
        rollout: whether the attention is rolled out, too, which keeps that of all blocks.
        every_block: whether norms and attention of all blocks are mapped, too.
        interpolate: as the `Recorder`'s.

    Raises:
        ValueError: unsupported family, or a layer that the model does not have.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        detection_layer: int,
        rollout: bool = False,
        every_block: bool = False,
        interpolate: OutlierRule | None = None,
    ) -> None:
        tower = VisionTower.to_measure(model, attention="eager")
        layer = tower.layer("detection_layer", detection_layer)
        self._rolls_out, self._every_block = rollout, every_block
        self._detection_row = layer if every_block else 0
        normed = range(tower.num_layers) if every_block else [layer]
        attended = range(0 if rollout or every_block else tower.num_layers - 1, tower.num_layers)
        self.recorder = Recorder(
            tower, norm_layers=normed, attention_layers=attended, patches=True, interpolate=interpolate
        )

    def __enter__(self) -> "MapRecorder":
        self.recorder.__enter__()
        return self

    def __exit__(self, *failure: object) -> None:
        self.recorder.__exit__(None, None, None)

    def __call__(self, pixel_values: Tensor) -> list[ImageMaps]:
        """Maps of each of the images `(B, 3, H, W)`.

        Raises:
            ValueError: no batch of images.
        """
        if pixel_values.ndim != 4:
            raise ValueError(
                f"`pixel_values` is a batch `(B, channels, height, width)`, got shape {tuple(pixel_values.shape)}. "
                "Preprocess images with the checkpoint's image processor; `[None]` makes one image a batch."
            )
        return self.maps_of(self.recorder(pixel_values), (pixel_values.shape[-2], pixel_values.shape[-1]))

    def maps_of(self, recording: Recording, grid: tuple[int, int]) -> list[ImageMaps]:
        """Maps of what this recorder recorded of images of so many pixels in height and width."""
        layout, features_BDhw = self.recorder.tower.layout, recording.patches_BDhw
        pooled_BD = recording.feature_BD
        assert features_BDhw is not None  # all blocks ran
        assert pooled_BD is not None
        attentions = [_float(attention_BTT) for attention_BTT in recording.attentions.values()]
        given_LBT = torch.stack([_given_attention(attention_BTT, layout) for attention_BTT in attentions])
        rollouts: list[Tensor | None] = [None] * given_LBT.shape[1]
        if self._rolls_out:
            rollouts = list(as_map(_given_attention(rolled_out(attentions), layout), layout, grid))
        on_register_LB = given_LBT[..., layout.registers].sum(dim=-1)
        norms_LBhw, attention_LBhw = (
            torch.stack([as_map(values_BT, layout, grid) for values_BT in values_LBT])
            for values_LBT in (_float(recording.norms_LBT), given_LBT)
        )
        features_BhwD = _float(features_BDhw).permute(0, 2, 3, 1)  # (B, D, h, w) -> (B, h, w, D)
        return [
            ImageMaps(
                patch_norms=norms_LBhw[self._detection_row, image],
                attention=attention_LBhw[-1, image],
                register_attention=float(on_register_LB[-1, image]) if layout.num_test_time_registers else None,
                features=features_BhwD[image],
                has_cls=layout.num_prefix_tokens > 0,
                pooled_D=_float(pooled_BD[image]),
                rollout=rollout,
                blocks=BlockMaps(norms_LBhw[:, image], attention_LBhw[:, image], on_register_LB[:, image])
                if self._every_block
                else None,
            )
            for image, rollout in enumerate(rollouts)
        ]


def image_maps(
    model: PreTrainedModel, pixel_values: Tensor, *, detection_layer: int, rollout: bool = False
) -> list[ImageMaps]:
    """Maps of some images in one model, stock or patched, with or without a head; the model stays as it is.

    Args:
        model: of a supported family.
        pixel_values: `(B, 3, H, W)`, preprocessed; moved to the model's device and dtype.
        detection_layer: block whose output is measured, 0-based; negative ones count from the end.
        rollout: whether the attention is rolled out, too.

    Returns:
        One `ImageMaps` an image.

    Raises:
        ValueError: unsupported family, no batch of images, or a layer that the model does not have.
    """
    with MapRecorder(model, detection_layer=detection_layer, rollout=rollout) as maps:
        return maps(pixel_values)


def neuron_maps(model: PreTrainedModel, pixel_values: Tensor, neuron: tuple[int, int]) -> Tensor:
    """`(B, h, w)`: a neuron's activation on the patches of each image, before any shift; float32 on the CPU.

    Args:
        model: of a supported family; of a patched one the base model is run.
        pixel_values: `(B, 3, H, W)`, preprocessed.
        neuron: `(layer, index)`, 0-based.

    Raises:
        ValueError: a layer or neuron that the model does not have.
    """
    tower, (layer, index) = VisionTower.to_measure(model, registers=False), neuron
    if not 0 <= layer < tower.num_layers:
        raise ValueError(
            f"`neuron` names layer {layer}, but this model has {tower.num_layers} layers (0 to "
            f"{tower.num_layers - 1}). Give one of these."
        )
    if not 0 <= index < tower.widths[layer]:
        raise ValueError(
            f"`neuron` names neuron {index}, but layer {layer} has {tower.widths[layer]} neurons (0 to "
            f"{tower.widths[layer] - 1}). Give one of these."
        )
    with Recorder(tower, [layer], norm_layers=[], stop_after=layer) as recorder:
        acts_BT = _float(recorder(pixel_values).acts_by_layer[layer][..., index])
    return as_map(acts_BT, tower.layout, (pixel_values.shape[-2], pixel_values.shape[-1]))


def as_map(values_BT: Tensor, layout: TokenLayout, grid: tuple[int, int]) -> Tensor:
    """One value a token, as maps of the patches: `(B, T)` -> `(B, h, w)`."""
    return layout.patch_map(values_BT.unsqueeze(-1), *grid).squeeze(1)


def rolled_out(attentions: Sequence[Tensor]) -> Tensor:
    """How much of each token of the input is in each token of the output, if tokens were mixed by attention alone.

    Args:
        attentions: `(B, T, T)` of each block, rows that sum to 1.

    Returns:
        `(B, T, T)`, rows that sum to 1.

    Source: Abnar and Zuidema 2020 (arXiv 2005.00928): the product over blocks of the mean of attention and identity,
        which stands for the residual connection.
    """
    size = attentions[0].shape[-1]
    rolled_BTT = identity_TT = torch.eye(size, dtype=attentions[0].dtype)
    for attention_BTT in attentions:
        rolled_BTT = (attention_BTT + identity_TT) / 2 @ rolled_BTT
    return rolled_BTT


def _given_attention(attention_BTT: Tensor, layout: TokenLayout) -> Tensor:
    """`(B, T)`: what CLS, the first prefix token, gives to each token; without it, what patches give on average."""
    if layout.num_prefix_tokens:
        return attention_BTT[:, layout.prefix][:, 0]
    return attention_BTT[:, layout.patches].mean(dim=1)


def _float(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32)
