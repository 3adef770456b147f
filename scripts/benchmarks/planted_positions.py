"""Outliers at the same places of every image, wired into a planted model, and the truth about them.

Every function changes the model in place and returns the new truth.

Letters: `h`, `w` height and width of the position table, `D` channels, `B` images, `N` patches.
"""

import dataclasses

import torch
from torch import Tensor, nn

from benchmarks.planted_truth import (
    STRONGEST,
    KnownModel,
    firing,
    free_neurons,
    mlp_reads,
    outlier_channel,
    own_channels,
    random_direction,
    ranked,
    tune,
    without_plant,
    write_marked_neuron,
)
from ttreg_hf.known.position_table import position_table
from ttreg_hf.measuring.position_report import Place, place_on
from ttreg_hf.modeling.families import blocks_of_trunk, find_attention
from ttreg_hf.planted import wiring
from ttreg_hf.register_neuron import RegisterNeuron

# as a user of SigLIP reports it: norms of three rows of a 16 x 16 table whose others have 17 to 19
_REPORTED: dict[Place, float] = {(12, 1): 313.0, (2, 15): 231.0, (3, 0): 198.0}
_REPORTED_GRID, _REPORTED_ORDINARY, _REPORTED_SHARE = (16, 16), 18.0, 0.82


@torch.no_grad()
def with_table_spikes(known: KnownModel, *, seed: int) -> KnownModel:
    """A position table with three spikes as reported, larger or smaller by the seed, or one in a corner.

    Four fifths of each lie on one channel, which later blocks read as they read the channel of planted outliers, so
    that attention goes there; the rest lies on three that nothing reads. Planted neurons stay as they are.
    """
    model, was_firing = known.model, firing(known)
    channels = own_channels(known, range(5, 9))
    wiring.read_like(model, channels[0], outlier_channel(known))
    table = _table(known)
    grid = (table.shape[0], table.shape[1])
    corner = {(grid[0] - 1, grid[1] - 1): _REPORTED[12, 1]}
    spikes = corner if seed % 4 == 3 else {place_on(at, _REPORTED_GRID, grid): n for at, n in _REPORTED.items()}
    size = (1.0, 0.5, 0.75)[seed % 3] * 0.6 * known.ordinary_norm / _REPORTED_ORDINARY
    for at, norm in spikes.items():
        table[at][channels[0]] += size * norm * _REPORTED_SHARE**0.5
        table[at][channels[1:]] += size * norm * ((1 - _REPORTED_SHARE) / 3) ** 0.5
    first_norm = _norm_before_blocks(model)
    if first_norm is not None:  # leaves of each token a vector of one length, so its weight makes the spikes long
        first_norm.get_parameter("weight")[channels] = size * 313.0 / known.ordinary_norm
    tune(known, was_firing)
    return dataclasses.replace(known, fixed_positions=tuple(spikes))


@torch.no_grad()
def with_needed_table_spikes(known: KnownModel, *, seed: int) -> KnownModel:
    """Spikes that say which patches are to be read: all tokens get the texture of those, as of no others."""
    known = with_table_spikes(known, seed=seed)
    model, layer = known.model, 1
    (texture,) = own_channels(known, range(9, 10))
    filters = wiring.filters_of(model)
    pattern = torch.randn(filters[texture].shape, generator=torch.Generator().manual_seed(12_000 + seed))
    filters[texture] = 1.5 * (pattern - pattern.mean()) / pattern.norm()
    block = blocks_of_trunk(model)[layer]
    states_BND = wiring.patches_of(model, wiring.input_of(model, find_attention(block), known.sample))
    grid = _table(known).shape[:2]
    at = [row * grid[1] + column for row, column in known.fixed_positions]
    spike = int(states_BND[:, at].mean((0, 1)).abs().argmax())
    values_B = states_BND[:, at, texture].mean(1)
    wiring.write_copied(
        block,
        asks_D=wiring.axis(model, spike, 1 / float(states_BND[:, at, spike].min())),
        reads_D=wiring.axis(model, texture, 1 / float(values_B.std())),
        zero=float(values_B.mean() / values_B.std()),
        writes_D=0.4 * known.ordinary_norm * random_direction(known, torch.Generator().manual_seed(11_000 + seed)),
    )
    return dataclasses.replace(known, verdicts=("unresolved",))


@torch.no_grad()
def with_attention_at_positions(known: KnownModel, *, seed: int, layer: int = 4) -> KnownModel:
    """Outliers at the places that the position table marks a little, written by attention: no neuron can be moved."""
    channel = outlier_channel(known)
    model, known = known.model, without_plant(known)
    (marked,) = own_channels(known, range(5, 6))
    table = _table(known).flatten(0, 1)
    places = torch.randperm(len(table), generator=torch.Generator().manual_seed(5000 + seed))[: 1 + seed % 3]
    table[places, marked] = 0.3 * known.ordinary_norm
    if (first_norm := _norm_before_blocks(model)) is not None:
        first_norm.get_parameter("weight")[marked] = 1.0
    attention = find_attention(blocks_of_trunk(model)[layer])
    states_BND = wiring.patches_of(model, wiring.input_of(model, attention, known.sample))
    wiring.write_attention_to_like(
        blocks_of_trunk(model)[layer],
        reads_D=wiring.axis(model, marked),
        ordinary=float(states_BND[..., marked].median()),
        special=float(states_BND[:, places, marked].mean()),
        writes_D=wiring.axis(model, channel, 10.0 * known.ordinary_norm),
    )
    return dataclasses.replace(known, verdicts=("unresolved",))


@torch.no_grad()
def with_fixed_positions(known: KnownModel, *, seed: int) -> KnownModel:
    """Outliers at the same few places of every image: neurons that fire by position embedding, or rotary position."""
    model, planted_layers = known.model, {neuron.layer for neuron in known.register_neurons}
    layer = next(layer for layer in (4, 5, 3, 6, 2, 7, 8) if layer not in planted_layers)
    was_firing = firing(known)
    marked, writes, lone = own_channels(known, range(5, 8))
    if planted_layers:
        wiring.read_like(model, writes, outlier_channel(known))
    table = position_table(model)
    if table is not None:
        table = table.flatten(0, 1)  # (h, w, D) -> (N, D), the same memory
        random = torch.Generator().manual_seed(5000 + seed)
        table[torch.randperm(len(table), generator=random)[: 1 + seed % 3], marked] = 0.3 * known.ordinary_norm
    else:
        wiring.prefix_parameters(model, ["cls"])[0][..., lone] = 0.3 * known.ordinary_norm
        attention = find_attention(blocks_of_trunk(model)[1])
        value = wiring.input_of(model, attention, known.sample)[:, 0, lone].mean()
        wiring.write_rotary_marks(
            blocks_of_trunk(model)[1],
            from_channel=lone,
            prefix_value=float(value),
            to_channel=marked,
            length=0.6 * known.ordinary_norm,
        )
    values_BN = mlp_reads(known, layer)[..., marked]
    at_marks = values_BN[:, values_BN.mean(0) > 0.5 * values_BN.mean(0).max()]
    height = float(at_marks[at_marks > 0.5 * at_marks.median()].min())  # planted outliers hide the mark
    neurons = free_neurons(known, layer, 2, torch.Generator().manual_seed(5))
    for neuron in neurons:
        write_marked_neuron(known, layer, neuron, marked=marked, height=height, writes=writes, length=6.0)
    tune(known, was_firing)
    new = [RegisterNeuron(layer, neuron, STRONGEST) for neuron in neurons]
    return dataclasses.replace(known, verdicts=("fixed",), register_neurons=ranked(*known.register_neurons, *new))


def _table(known: KnownModel) -> Tensor:
    """`(h, w, D)`; writing into it changes the model.

    Raises:
        ValueError: positions are rotary.
    """
    table = position_table(known.model)
    if table is None:
        raise ValueError(f"Spikes need a learned position table; {known.model.config.model_type} has none.")
    return table


def _norm_before_blocks(model: nn.Module) -> nn.Module | None:
    return next((module for name, module in model.named_modules() if name.endswith("pre_layrnorm")), None)
