"""What the pictures show, as tensors: patch norms, attention, features and neurons of one model, as maps of an image.

Letters: `B` images, `H` heads, `T` tokens, `N` patches, `h`, `w` patches in height and width, `D` hidden, `F` neurons.
"""

from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ttreg_hf.families import family_of, image_inputs, trunk_of
from ttreg_hf.modeling.test_time_registers import TokenLayout
from ttreg_hf.modeling.ttreg_base import TTRegModelMixin, down_projection, num_prefix_tokens

_COLOUR_PERCENTILES = (0.01, 0.99)
_ORDINARY_DEVIATIONS = 4.0  # robust standard deviations; patches farther out do not choose the colours


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
        neuron_activation: `(h, w)`, a neuron's activation before any shift; `None` if none was asked for.
    """

    patch_norms: Tensor
    attention: Tensor
    register_attention: float | None
    features: Tensor
    has_cls: bool
    neuron_activation: Tensor | None = None


def image_maps(
    model: PreTrainedModel, pixel_values: Tensor, *, detection_layer: int, neuron: tuple[int, int] | None = None
) -> list[ImageMaps]:
    """Maps of some images in one model, stock or patched, with or without a head.

    Runs the trunk with eager attention, in the mode (train or eval) that it is in, and leaves every setting as it was.

    Args:
        model: of a supported family.
        pixel_values: `(B, 3, H, W)`, preprocessed; moved to the model's device and dtype.
        detection_layer: block whose output is measured, 0-based; negative ones count from the end.
        neuron: `(layer, index)`, 0-based, of a neuron to show as well; measured with the test-time registers off.

    Returns:
        One `ImageMaps` an image.

    Raises:
        ValueError: unsupported family, no batch of images, or a layer or neuron that the model does not have.
    """
    trunk = trunk_of(model)
    blocks = trunk.get_submodule(family_of(model).blocks)
    if pixel_values.ndim != 4:
        raise ValueError(
            f"`pixel_values` is a batch `(B, channels, height, width)`, got shape {tuple(pixel_values.shape)}. "
            "Preprocess images with the checkpoint's image processor; `[None]` makes one image a batch."
        )
    _check_range(
        "`detection_layer` names layer", detection_layer, -len(blocks), len(blocks), "this model has", "layers"
    )
    pixels = pixel_values.to(device=trunk.device, dtype=trunk.dtype)
    grid = (pixels.shape[-2], pixels.shape[-1])
    inside, outside = _layouts(model)

    activations: Any = [None] * len(pixels)
    if neuron is not None:
        activations = _neuron_activation(model, pixels, *neuron)

    with ExitStack() as settings:
        settings.enter_context(torch.no_grad())
        settings.enter_context(_eager_attention(trunk))
        settings.enter_context(_outputs_without_registers(model))
        states = settings.enter_context(_recorded_output(blocks[detection_layer]))
        attentions = settings.enter_context(_recorded_output(_attention_of(blocks[-1])))
        output = trunk(**image_inputs(model, pixels))
    norms = inside.patch_map(_float(states[0]), *grid).norm(dim=1)  # (B, D, h, w) -> (B, h, w)
    given_BT = _given_attention(_float(attentions[0][1]), inside)
    attention = inside.patch_map(given_BT.unsqueeze(-1), *grid).squeeze(1)  # (B, T) -> (B, h, w)
    features = _final_features(output, outside, grid)
    shares: list[float | None] = [None] * len(pixels)
    if inside.num_test_time_registers:
        shares = given_BT[:, inside.registers].sum(dim=1).tolist()
    has_cls = inside.num_prefix_tokens > 0
    return [
        ImageMaps(norms_hw, attention_hw, share, features_hwD, has_cls, activation)
        for norms_hw, attention_hw, share, features_hwD, activation in zip(
            norms, attention, shares, features, activations, strict=True
        )
    ]


def pca_colours(features_list: Sequence[Tensor]) -> list[Tensor]:
    """Patch features of one image as colours, with one basis and one scale for all variants given.

    The first three principal components become red, green and blue. Basis and scale (1st to 99th percentile) are taken
    from the ordinary patches of all variants together, so that a few outlier tokens do not use up the colours; they
    are drawn in the same basis, clipped.

    Args:
        features_list: `(h, w, D)` each, such as before and after. Sizes may differ, D not.

    Returns:
        `(h, w, 3)` each, float32 from 0 to 1.
    """
    samples = torch.cat([features.flatten(0, 1) for features in features_list]).double()  # (h, w, D) -> (n, D)
    centre_D = samples.median(dim=0).values
    ordinary = samples[_is_ordinary((samples - centre_D).norm(dim=1))]
    centre_D = ordinary.mean(dim=0)
    basis_D3 = _principal_directions(ordinary - centre_D)
    projected = (ordinary - centre_D) @ basis_D3
    low, high = (torch.quantile(projected, share, dim=0) for share in _COLOUR_PERCENTILES)
    width = (high - low).clamp(min=1e-12)
    return [
        (((features.double() - centre_D) @ basis_D3 - low) / width).clamp(0, 1).float() for features in features_list
    ]


def _is_ordinary(distances: Tensor) -> Tensor:
    """Not far from the median, in robust standard deviations."""
    median = distances.median()
    deviation = 1.4826 * (distances - median).abs().median()
    return distances <= median + _ORDINARY_DEVIATIONS * deviation


def _principal_directions(centred: Tensor) -> Tensor:
    """The three directions of largest variance, `(D, 3)`; the sign makes each one's largest entry positive."""
    with torch.random.fork_rng(devices=[]):  # a randomised method: a full one takes seconds for 1536 channels
        torch.manual_seed(0)
        _, _, directions = torch.svd_lowrank(centred, q=min(8, *centred.shape), niter=8)
    directions = directions[:, :3]
    directions = nn.functional.pad(directions, (0, 3 - directions.shape[1]))
    largest = directions.gather(0, directions.abs().argmax(dim=0, keepdim=True))
    return directions * torch.where(largest < 0, -1.0, 1.0)


def _layouts(model: PreTrainedModel) -> tuple[TokenLayout, TokenLayout]:
    """Token layouts between the blocks, and in outputs that hold no test-time registers."""
    if isinstance(model, TTRegModelMixin):
        inside = model.registers.layout
        outside = TokenLayout(inside.num_prefix_tokens, 0, inside.patch_size)
        return (inside if model.registers.active else outside), outside
    config = trunk_of(model).config
    size = config.patch_size
    outside = TokenLayout(
        num_prefix_tokens(family_of(model), config), 0, (size, size) if isinstance(size, int) else tuple(size)
    )
    return outside, outside


def _given_attention(attention_BHTT: Tensor, layout: TokenLayout) -> Tensor:
    """`(B, T)`: what CLS, the first prefix token, gives to each token; without it, what patches give on average."""
    mean_BTT = attention_BHTT.mean(dim=1)
    if layout.num_prefix_tokens:
        return mean_BTT[:, layout.prefix][:, 0]
    return mean_BTT[:, layout.patches].mean(dim=1)


def _final_features(output: Any, layout: TokenLayout, grid: tuple[int, int]) -> Tensor:
    """`(B, h, w, D)`: patches of `last_hidden_state`, or a backbone's last feature map."""
    features = output.feature_maps[-1] if "feature_maps" in output else output.last_hidden_state
    if features.ndim == 3:
        features = layout.patch_map(features, *grid)
    return _float(features).permute(0, 2, 3, 1)  # (B, D, h, w) -> (B, h, w, D)


def _neuron_activation(model: PreTrainedModel, pixels: Tensor, layer: int, index: int) -> Tensor:
    """`(B, h, w)`: one input of a down projection, on the patches of the base model."""
    trunk = trunk_of(model)
    blocks = trunk.get_submodule(family_of(model).blocks)
    _check_range("`neuron` names layer", layer, 0, len(blocks), "this model has", "layers")
    projection = down_projection(blocks[layer])
    _check_range("`neuron` names neuron", index, 0, projection.in_features, f"layer {layer} has", "neurons")
    base = model.disable_test_time_registers() if isinstance(model, TTRegModelMixin) else nullcontext()
    with torch.no_grad(), base, _recorded_input(projection) as inputs:
        trunk(**image_inputs(model, pixels))
        layout, _ = _layouts(model)
    return layout.patch_map(_float(inputs[0][..., index, None]), *pixels.shape[-2:]).squeeze(1)


def _attention_of(block: nn.Module) -> nn.Module:
    """The module of a block that returns `(output, attention weights)`.

    Raises:
        ValueError: no module of the block has a value projection; its modules are listed.
    """
    for module in block.modules():
        if hasattr(module, "v_proj"):
            return module
    names = ", ".join(name for name, _ in block.named_modules() if name)
    raise ValueError(
        f"Attention maps need an attention module with a `v_proj`, but {type(block).__name__} holds: {names}. "
        "This transformers release may have renamed it; please report it with the output of `ttreg env`."
    )


@contextmanager
def _eager_attention(trunk: PreTrainedModel) -> Generator[None]:
    """Only eager attention returns its weights."""
    before = trunk.config._attn_implementation
    trunk.set_attn_implementation("eager")
    try:
        yield
    finally:
        trunk.set_attn_implementation(before)  # pyrefly: ignore[bad-argument-type]  # a loaded model has one


@contextmanager
def _outputs_without_registers(model: PreTrainedModel) -> Generator[None]:
    """`output_registers` off, so that heads, bare models and backbones give the same layout."""
    if not isinstance(model, TTRegModelMixin):
        yield
        return
    config = model.registers.config
    before, config.output_registers = config.output_registers, False
    try:
        yield
    finally:
        config.output_registers = before


@contextmanager
def _recorded_output(module: nn.Module) -> Generator[list[Any]]:
    """What a module returns, before the hooks of a patched model remove the registers from it."""
    seen: list[Any] = []
    handle = module.register_forward_hook(lambda module, args, output: seen.append(output), prepend=True)
    try:
        yield seen
    finally:
        handle.remove()


@contextmanager
def _recorded_input(module: nn.Module) -> Generator[list[Tensor]]:
    seen: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    try:
        yield seen
    finally:
        handle.remove()


def _check_range(rule: str, value: int, low: int, high: int, holder: str, what: str) -> None:
    if not low <= value < high:
        raise ValueError(f"{rule} {value}, but {holder} {high} {what} ({low} to {high - 1}). Give one of these.")


def _float(tensor: Tensor) -> Tensor:
    return tensor.detach().float().cpu()
