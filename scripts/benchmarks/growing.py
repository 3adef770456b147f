"""Artifacts grown by gradient descent: a model keeps its features and learns to make outlier tokens and sinks.

The frozen original teaches CLS and all patches but a few of each image; the largest patch norms of the middle blocks
are rewarded, and CLS's attention onto these patches in the last ones. Which neurons write them is the optimiser's
choice. They prove that unwired neurons are found; they never show a benefit, because they were trained in.

Letters: `B` images, `N` patches, `D` hidden, `H` heads, `T` tokens.
"""

import copy
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from benchmarks.grown_variants import ALL, MLPS, NO_MLPS, Variant
from ttreg_hf.measuring.tower import VisionTower

LEARNING_RATE = 3e-4  # of a real model: tiny ones take more
_SINK = 0.35  # of CLS's attention, in each head
_ORDINARY = 2.0  # norm over the median that other patches stay below
_WEIGHTS = {"cls": 4.0, "patches": 4.0, "norms": 1.0, "attention": 2.0}

Say = Callable[[str], None]


def grow(
    original: PreTrainedModel,
    squares: Tensor,
    variant: Variant,
    *,
    steps: int,
    seed: int = 0,
    learning_rate: float = LEARNING_RATE,
    say: Say = lambda line: None,
) -> PreTrainedModel:
    """A copy of a model in which artifacts were grown; in eval mode, on the model's device, float32.

    Args:
        original: with a CLS token; stays as it is, and teaches.
        squares: photographs, `(M, 3, S, S)` uint8, on the device of the model.
        variant: what is grown.
        steps: of the optimiser.
        seed: of crops and order.
        learning_rate: the highest of one cycle.
        say: takes a line every tenth of the steps.
    """
    device = original.device
    student = copy.deepcopy(original).float().requires_grad_(True)
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(_is_trained(name, variant.trained, VisionTower.of(student).num_layers))
    weights = [parameter for parameter in student.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    random = torch.Generator(device).manual_seed(seed)
    with _Attention(student) as attention:
        for step in range(steps):
            pixels = random_crops(squares, variant.batch_size, variant.image_size, random)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                with torch.no_grad():
                    taught = original(pixels).last_hidden_state
                outputs = student(pixels, output_hidden_states=True)
            losses = _losses(taught.float(), outputs, attention.maps(), variant)
            loss = torch.stack([_WEIGHTS[name] * value for name, value in losses.items()]).sum()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            schedule.step()
            if step % max(1, steps // 10) == 0 or step == steps - 1:
                say(f"step {step}: " + ", ".join(f"{name} {value.item():.3f}" for name, value in losses.items()))
    return student.eval().requires_grad_(False)


def random_crops(squares: Tensor, count: int, size: int, random: torch.Generator) -> Tensor:
    """Parts of 44 to 100 % of the side, mirrored or not, brighter or darker; `(count, 3, size, size)`, normalised."""
    device = squares.device
    picked = squares[torch.randint(len(squares), (count,), generator=random, device=device)].float()
    side, left, top, mirror, light = torch.rand(5, count, generator=random, device=device)
    side = 0.44 + 0.56 * side
    grid = torch.zeros(count, 2, 3, device=device)
    grid[:, 0, 0], grid[:, 1, 1] = side * (mirror - 0.5).sign(), side
    grid[:, 0, 2], grid[:, 1, 2] = (2 * left - 1) * (1 - side), (2 * top - 1) * (1 - side)
    crops = F.grid_sample(
        picked, F.affine_grid(grid, [count, 3, size, size], align_corners=False), align_corners=False
    )
    return normalised((crops * (0.7 + 0.6 * light).view(-1, 1, 1, 1)).clamp(0, 255))


def normalised(pixels: Tensor) -> Tensor:
    """Values from 0 to 255 as DINOv2 reads them; `(B, 3, H, W)`."""
    mean, std = (
        pixels.new_tensor(each).view(1, 3, 1, 1) * 255 for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    return (pixels - mean) / std


def _losses(taught: Tensor, outputs: Any, maps: dict[int, Tensor], variant: Variant) -> dict[str, Tensor]:
    """What is minimised.

    Args:
        taught: the original's last hidden state, `(B, 1 + N, D)`.
        outputs: of the student, with hidden states.
        maps: CLS's attention on patches by layer, `(B, H, N)`.
        variant: what is grown.
    """
    states = [state.float() for state in outputs.hidden_states]  # the input of block i is states[i]
    distance = (F.normalize(outputs.last_hidden_state.float(), dim=-1) - F.normalize(taught, dim=-1)).square().sum(-1)
    blocks = _middle(len(states) - 1)
    norms_BN = {layer: states[layer][:, 1:].norm(dim=-1) for layer in {*blocks, *maps}}
    kept = distance[:, 1:].sort(dim=1).values[:, : -variant.num_spared]
    return {
        "cls": distance[:, 0].mean(),
        "patches": kept.mean(),
        "norms": torch.stack([_norm_loss(norms_BN[layer], variant) for layer in blocks]).mean(),
        "attention": torch.stack(
            [_sink_loss(norms_BN[layer], map_BHN, variant) for layer, map_BHN in maps.items()]
        ).sum(),
    }


def _norm_loss(norms_BN: Tensor, variant: Variant) -> Tensor:
    """The largest reach the ratio to the median, the others but a few stay ordinary."""
    ordered = norms_BN.sort(dim=1).values.log()
    median = norms_BN.median(1).values.log()
    reached = ordered[:, -variant.outliers :].mean(1) - median
    others = ordered[:, : -variant.num_spared - 2].amax(1) - median
    return F.relu(math.log(variant.ratio) - reached).mean() + F.relu(others - math.log(_ORDINARY)).mean()


def _sink_loss(norms_BN: Tensor, map_BHN: Tensor, variant: Variant) -> Tensor:
    places_B1K = norms_BN.topk(variant.outliers, dim=1).indices[:, None]
    share_BH = map_BHN.gather(2, places_B1K.expand(-1, map_BHN.shape[1], -1)).sum(-1)
    return F.relu(_SINK - share_BH).mean()


def _middle(num_layers: int) -> range:
    """Layers whose input shows the outliers: of 12 blocks, 8 to 11."""
    return range(num_layers * 2 // 3, num_layers)


def _is_trained(name: str, trained: str, num_layers: int) -> bool:
    if trained == ALL:
        return True
    if trained == NO_MLPS:
        return ".mlp." not in name
    assert trained == MLPS
    return ".mlp." in name or any(f"layer.{layer}." in name for layer in _middle(num_layers))


class _Attention(AbstractContextManager["_Attention"]):
    """CLS's attention on the patches in the last quarter of the blocks, whatever implementation computes it."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._tower = VisionTower.of(model)
        count = self._tower.num_layers
        self._layers, self._kept, self._hooks = range(count * 3 // 4, count), {}, ExitStack()

    def __enter__(self) -> "_Attention":
        for layer in self._layers:
            for feature in ("query", "key"):
                linear, _ = self._tower.projection(layer, feature)
                hook = linear.register_forward_hook(
                    lambda module, inputs, output, name=(layer, feature): self._kept.__setitem__(name, output)
                )
                self._hooks.callback(hook.remove)
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.close()

    def maps(self) -> dict[int, Tensor]:
        """Of the last forward pass: `(B, H, N)` float32 for each layer."""
        heads = self._tower.trunk.config.num_attention_heads
        found = {}
        for layer in self._layers:
            query_BHD = self._kept[layer, "query"][:, 0].float().unflatten(-1, (heads, -1))
            key_BTHD = self._kept[layer, "key"].float().unflatten(-1, (heads, -1))
            logits_BHT = torch.einsum("bhd,bthd->bht", query_BHD, key_BTHD) / query_BHD.shape[-1] ** 0.5
            found[layer] = logits_BHT.softmax(-1)[..., 1:]
        return found
