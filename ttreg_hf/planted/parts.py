"""What is written into the weights of a planted model around its register neurons: channels, contrast, attention.

All functions write in place, under `torch.no_grad()`.

Letters: `D` hidden.
"""

import math
from typing import Any

import torch

from ttreg_hf.modeling.families import down_projection, find_attention, find_mlp, is_gated
from ttreg_hf.planted.wiring import (
    filters_of,
    output_projection,
    patch_projection,
    pooling_attention,
    read_projection,
    tokens_and_positions,
    write_neuron,
)

BRIGHT, OUTLIER, CONTRAST, CONSTANT = 0, 1, 2, 3  # channels of the hidden states
_HIGH_PASS = (4, 5, 6)
_RESERVED = (BRIGHT, OUTLIER, CONTRAST, CONSTANT, *_HIGH_PASS)
_SINK_LOGIT = 6.0
_CONTENT_LOGIT = 0.5  # for each standard deviation of contrast, after LayerNorm
_POOLING_LOGIT = 3.0  # likewise, in a pooling head
_RANDOM_STD = 0.02


def write_embeddings(model: Any) -> None:
    """Channels of the embeddings: mean brightness, high-pass filters, a constant, and two kept empty."""
    projection, filters = patch_projection(model), filters_of(model)
    has_positions = False
    for name, parameter in tokens_and_positions(model).items():
        parameter[..., list(_RESERVED)] = 0
        if any(word in name for word in ("cls", "class", "register", "distillation")):
            parameter.normal_(std=0.5, generator=torch.Generator().manual_seed(len(name)))
            parameter[..., list(_RESERVED)] = 0
            parameter[..., BRIGHT], parameter[..., CONTRAST] = -2.0, 4.0  # no trigger fires on prefix tokens
        elif parameter.numel() > parameter.shape[-1]:
            parameter[..., CONSTANT] = 1.0
            has_positions = True
    height, width = filters.shape[2:]
    filters[list(_RESERVED)] = 0
    filters[BRIGHT] = 2.0 / (3 * height * width)
    rows, columns = torch.arange(height)[:, None], torch.arange(width)[None, :]
    for channel, stripes in zip(_HIGH_PASS, (rows, columns, rows + columns), strict=True):
        pattern = 1.0 - 2.0 * (stripes.expand(height, width) % 2)
        pattern = pattern - pattern.mean()
        filters[channel] = 3.0 * pattern / math.sqrt(3) / pattern.norm()
    if projection.bias is not None:
        projection.bias[list(_RESERVED)] = 0
        projection.bias[CONSTANT] = 0.0 if has_positions else 1.0


def quieten(block: Any) -> None:
    """Random weights stay small beside what is planted, leave its channels alone, and do not read the outliers."""
    attention, (mlp, _) = find_attention(block), find_mlp(block)
    output = output_projection(attention)
    up = (read_projection(block), *([mlp.up_proj] if is_gated(mlp) else []))
    for linear in (output, *up):
        linear.weight *= min(1.0, _RANDOM_STD / float(linear.weight.std()))
    for linear in (output, down_projection(block)):
        linear.weight[list(_RESERVED)] = 0
        if linear.bias is not None:
            linear.bias[list(_RESERVED)] = 0
    for linear in (attention.v_proj, *up):
        linear.weight[:, OUTLIER] = 0


def write_contrast(block: Any) -> None:
    """The last neurons of layer 0 rectify the high-pass channels, and add them up on the contrast channel."""
    down = down_projection(block)
    neuron = down.in_features
    for channel in _HIGH_PASS:
        for sign in (1.0, -1.0):
            neuron -= 1
            direction = torch.zeros(down.out_features)
            direction[channel] = 0.5 * sign
            writes_D = down.weight[:, neuron].clone()
            writes_D[CONTRAST] = 1.0
            write_neuron(block, neuron, reads_D=direction, bias=0.0, writes_D=writes_D)


def write_sink(block: Any) -> None:
    """Every query asks, in every head, for the direction that keys take on the outlier channel."""
    attention = find_attention(block)
    hidden = attention.k_proj.in_features
    after_norm = math.sqrt(hidden)  # what LayerNorm leaves on the one channel of an outlier token
    head_size = attention.head_dim
    still = head_size // 4 - 1  # RoPE turns this dimension and `2 * still + 1` least
    for place in range(still, attention.k_proj.out_features, head_size):
        attention.q_proj.bias[place] += math.sqrt(head_size)
        attention.k_proj.weight[place, OUTLIER] = _SINK_LOGIT / after_norm


def write_content_attention(block: Any) -> None:
    """Queries of the last block prefer patches with contrast: what the attention map shows where no sink spoils it."""
    attention = find_attention(block)
    for place in range(attention.head_dim // 2 - 1, attention.k_proj.out_features, attention.head_dim):
        attention.q_proj.bias[place] += math.sqrt(attention.head_dim)
        attention.k_proj.weight[place, CONTRAST] = _CONTENT_LOGIT


def write_pooling_head(model: Any) -> None:
    """A head that attends to all tokens leaves the outliers out too, and prefers patches with contrast."""
    attention = pooling_attention(model)
    if attention is None:
        return
    query, key, value = attention.in_proj_weight.chunk(3)
    bias = attention.in_proj_bias.chunk(3)[0]
    value[:, OUTLIER] = 0
    key[:, [OUTLIER, CONTRAST]] = 0
    for start in range(0, len(query), attention.head_dim):
        bias[start] += math.sqrt(attention.head_dim)
        key[start, OUTLIER] = -_SINK_LOGIT / math.sqrt(len(query))
        key[start, CONTRAST] = _POOLING_LOGIT
