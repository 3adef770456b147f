"""One image as a model sees it: a figure before and after, and the maps that it shows as arrays.

Letters: `h`, `w` patches in height and width, `H`, `W` pixels, `D` channels.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from transformers import PreTrainedModel

from ttreg_hf.applying import add_test_time_registers, base_name
from ttreg_hf.images.pixel_values import to_pixel_values
from ttreg_hf.known.checkpoints import known_checkpoint
from ttreg_hf.loading import model_and_processor
from ttreg_hf.measuring.image_maps import ImageMaps, image_maps, neuron_maps
from ttreg_hf.measuring.norms import NormReport
from ttreg_hf.measuring.tower import VisionTower
from ttreg_hf.modeling.modeling_ttreg import TTRegModelMixin
from ttreg_hf.pictures.before_after import plot_before_after
from ttreg_hf.pictures.colours import pca_colours


@runtime_checkable
class HasNorms(Protocol):
    """What a `CalibrationResult` says about where outliers show."""

    @property
    def norms(self) -> NormReport:
        """Of the base model."""
        ...


@dataclass(frozen=True, eq=False)
class Maps:
    """One image, as one model sees it: numpy arrays, float32, of the patches alone, in their places.

    Args:
        photo: `(H, W, 3)` from 0 to 1, what the model saw.
        norms: `(h, w)`, L2 norm over channels of the detection block's raw output.
        attention: `(h, w)`, last block, mean over heads: what CLS gives to each patch, a share of 1. In models without
            CLS what each patch receives, mean over the patches that ask.
        rollout: `(h, w)`, the same, rolled out over all blocks (Abnar and Zuidema 2020, arXiv 2005.00928).
        pca: `(h, w, 3)` from 0 to 1, the first three principal components of `features` as red, green and blue.
        features: `(h, w, D)`, the model's final patch features.
        register_attention: share of `attention` that went to the test-time registers; `None` without them.
        has_cls: whether `attention` and `rollout` are what CLS gives.
    """

    photo: np.ndarray
    norms: np.ndarray
    attention: np.ndarray
    rollout: np.ndarray
    pca: np.ndarray
    features: np.ndarray
    register_attention: float | None
    has_cls: bool


def compute_maps(
    model_or_id: PreTrainedModel | str | Path,
    image: Any,
    *,
    processor: Any = None,
    detection_layer: int | None = None,
    tower: str | None = None,
) -> Maps:
    """Patch norms, attention, its rollout, PCA colours and features of one image, as arrays.

    Args:
        model_or_id: any model with a supported vision tower in it, stock or patched; or its Hub id or path.
        image: path, PIL image, uint8 array, or float tensor `(C, H, W)`, which is used as `pixel_values` as it is.
        processor: image processor; found by the id or path if not given.
        detection_layer: block whose norms are shown, 0-based; negative ones count from the end. `None`: the published
            one, else the family's.
        tower: dotted path of the vision tower, in a model that holds several; a patched model keeps its own.

    Raises:
        ValueError: unsupported family, no processor, or a layer that the model does not have.
    """
    model, processor = opened(model_or_id, processor, tower)
    pixel_values = to_pixel_values(image, processor, channels=VisionTower.of(model).num_channels)
    layer = detection_of(model, None)[0] if detection_layer is None else detection_layer
    (maps,) = image_maps(model, pixel_values.unsqueeze(0), detection_layer=layer, rollout=True)
    assert maps.rollout is not None  # it was asked for
    return Maps(
        photo=seen_photograph(pixel_values, processor),
        norms=maps.patch_norms.numpy(),
        attention=maps.attention.numpy(),
        rollout=maps.rollout.numpy(),
        pca=pca_colours([maps.features])[0].numpy(),
        features=maps.features.numpy(),
        register_attention=maps.register_attention,
        has_cls=maps.has_cls,
    )


def visualize(
    model_or_id: PreTrainedModel | str | Path,
    image: Any,
    register_neurons: Any = None,
    *,
    processor: Any = None,
    detection_layer: int | None = None,
    norm_threshold: float | None = None,
    neuron: tuple[int, int] | None = None,
    tower: str | None = None,
    title: str = "",
    caption: str = "",
) -> Figure:
    """Photo, patch norms, attention and PCA colours of one image; before and after, where a patched form is known.

    After is a patched model as it is, else the model with `register_neurons`, else with the published ones. Without
    any of them there is one row.

    Args:
        model_or_id: any model with a supported vision tower in it, stock or patched; or its Hub id or path.
        image: path, PIL image, uint8 array, or float tensor `(C, H, W)`, which is used as `pixel_values` as it is.
        register_neurons: as in `add_test_time_registers`, such as a `CalibrationResult`.
        processor: image processor; found by the id or path if not given.
        detection_layer: block whose norms are shown, 0-based; negative ones count from the end. `None`: the one of the
            calibration, else the published one, else the family's.
        norm_threshold: L2 norm at that block above which a patch counts as an outlier token. `None`: that of the
            calibration, else the published one, else none is marked.
        neuron: `(layer, index)` of a neuron to show as well.
        tower: dotted path of the vision tower, in a model that holds several; a patched model keeps its own.
        title: first line.
        caption: small print below.

    Returns:
        A figure without pyplot: `figure.savefig("my.png")`, or the last line of a notebook's cell.

    Raises:
        ValueError: unsupported family, no processor, or a layer or neuron that the model does not have.
    """
    model, processor = opened(model_or_id, processor, tower)
    layer, threshold = detection_of(model, register_neurons)
    return draw_image(
        model,
        patched_form(model, register_neurons),
        image,
        processor,
        detection_layer=layer if detection_layer is None else detection_layer,
        norm_threshold=threshold if norm_threshold is None else norm_threshold,
        neuron=neuron,
        title=title,
        caption=caption,
    )


def opened(model_or_id: Any, processor: Any, tower: str | None) -> tuple[PreTrainedModel, Any]:
    """A model with its processor; a patched twin without neurons says which tower is meant, and is the same model."""
    model, processor = model_and_processor(model_or_id, processor)
    if tower is not None and not isinstance(model, TTRegModelMixin):  # a patched model has its own
        model = add_test_time_registers(model, [], tower=tower)
    return model, processor


def base_form(model: PreTrainedModel) -> PreTrainedModel:
    """The model before: of a patched one, what it is without its register neurons."""
    return add_test_time_registers(model, []) if isinstance(model, TTRegModelMixin) else model


def patched_form(model: PreTrainedModel, register_neurons: Any = None) -> Any:
    """The model with these neurons, else as it is if it has some, else with published ones; `None` without any."""
    if register_neurons is not None:
        return add_test_time_registers(model, register_neurons)
    if isinstance(model, TTRegModelMixin):
        return model if model.config.register_neurons or model.config.fixed_positions else None
    known = known_checkpoint(base_name(model))
    return add_test_time_registers(model) if known is not None and known.register_neurons else None


def draw_image(
    base: PreTrainedModel,
    patched: PreTrainedModel | None,
    image: Any,
    processor: Any,
    *,
    detection_layer: int,
    norm_threshold: float | None = None,
    neuron: tuple[int, int] | None = None,
    title: str = "",
    caption: str = "",
) -> Figure:
    """The figure of one image, in both models; arguments as in `visualize`.

    Args:
        base: the model before; of a patched model, what it is without its test-time registers.
        patched: the model after; `None` draws one row.
        image: as in `visualize`, as all that follows.
        processor: likewise.
        detection_layer: likewise.
        norm_threshold: likewise.
        neuron: likewise.
        title: likewise.
        caption: likewise.
    """
    stock = base_form(base)
    channels = VisionTower.of(base).num_channels
    pixel_values = to_pixel_values(image, processor, name=title or "the image", channels=channels)
    before = _maps(stock, pixel_values, detection_layer)
    if neuron is not None:
        before = replace(before, neuron_activation=neuron_maps(stock, pixel_values.unsqueeze(0), neuron)[0])
    return plot_before_after(
        seen_photograph(pixel_values, processor),
        before,
        None if patched is None else _maps(patched, pixel_values, detection_layer),
        title=title,
        norm_threshold=norm_threshold,
        neuron_name="" if neuron is None else f"{neuron[0]}/{neuron[1]}",
        caption=caption,
    )


def seen_photograph(pixel_values: Tensor, processor: Any) -> np.ndarray:
    """What the model sees, as an image again: `(C, H, W)` -> `(H, W, 3)` array from 0 to 1.

    Without a processor that says how it was normalised, its lowest value becomes black and its highest white. One
    channel is shown in grey, and of more than three the first three as red, green and blue.
    """
    mean, deviation = getattr(processor, "image_mean", None), getattr(processor, "image_std", None)
    if processor is None:
        low, high = pixel_values.aminmax()
        pixel_values = (pixel_values - low) / (high - low).clamp(min=1e-12)
    elif getattr(processor, "do_normalize", False) and mean is not None and deviation is not None:
        pixel_values = pixel_values * torch.tensor(deviation)[:, None, None] + torch.tensor(mean)[:, None, None]
    if len(pixel_values) < 3:
        pixel_values = pixel_values[:1].expand(3, -1, -1)
    return pixel_values[:3].float().clamp(0, 1).permute(1, 2, 0).cpu().numpy()


def detection_of(model: PreTrainedModel, register_neurons: Any) -> tuple[int, float | None]:
    """Detection block and norm threshold: of a calibration, else the published ones, else the family's block alone."""
    if isinstance(register_neurons, HasNorms):
        return register_neurons.norms.detection_layer, register_neurons.norms.norm_threshold
    known = known_checkpoint(base_name(model))
    layer, threshold = (None, None) if known is None else (known.recipe.detection_layer, known.recipe.norm_threshold)
    return VisionTower.of(model).default_detection_layer if layer is None else layer, threshold


def _maps(model: PreTrainedModel, pixel_values: Tensor, detection_layer: int) -> ImageMaps:
    return image_maps(model, pixel_values.unsqueeze(0), detection_layer=detection_layer)[0]
