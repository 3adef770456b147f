"""Spikes of the position table: a tower without them, and other rows to compare with."""

import random
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ttreg_hf.applying import shared_copy
from ttreg_hf.known.position_table import patch_rows, position_table, table_parameter
from ttreg_hf.measuring.position_report import Place
from ttreg_hf.measuring.tower import VisionTower
from ttreg_hf.modeling.registers import position_spikes


def without_spikes(tower: VisionTower, places: Collection[Place]) -> VisionTower:
    """The tower with an ordinary table: spikes are taken out as in a patched model, and no token starts with them.

    Args:
        tower: of a stock model, which stays as it is.
        places: of the spikes, on the table's grid; none gives the same tower.
    """
    table = table_parameter(tower.trunk)
    if table is None or not places:
        return tower
    embeddings = tower.trunk.get_submodule(tower.family.embeddings)
    with torch.no_grad():
        spikes_1Dhw = position_spikes(embeddings, [list(place) for place in places])
        ordinary = nn.Parameter(table.detach().clone(), requires_grad=table.requires_grad)
        spikes_hwD = spikes_1Dhw[0].permute(1, 2, 0)  # (1, D, h, w) -> (h, w, D)
        patch_rows(tower.trunk, ordinary).sub_(spikes_hwD.to(ordinary.dtype))
    name = next((name for name, module in tower.model.named_modules() if module is tower.trunk), "")
    return VisionTower.of(shared_copy(tower.model, {id(table): ordinary}), name)


def moved_nowhere(tower: VisionTower, neurons: Sequence[Any], zeroing: Mapping[str, Any]) -> VisionTower:
    """A twin that takes away what another one moves: no register starts with a spike.

    Args:
        tower: of the base model.
        neurons: to zero.
        zeroing: options of `add_test_time_registers` with which neurons go nowhere; spikes that these name are taken
            out of the table.
    """
    places = [(row, column) for row, column in zeroing.get("fixed_positions", ())]
    return without_spikes(tower, places).patched(neurons, **{**zeroing, "fixed_positions": ()})


def random_rows(tower: VisionTower, places: Collection[Place], *, draws: int, seed: int) -> list[tuple[Place, ...]]:
    """As many other rows of the table, without replacement; so many draws."""
    table = position_table(tower.trunk)
    if table is None or not places:
        return [()] * draws
    generator = random.Random(seed)
    others = [
        (row, column)
        for row in range(table.shape[0])
        for column in range(table.shape[1])
        if (row, column) not in set(places)
    ]
    return [tuple(generator.sample(others, min(len(places), len(others)))) for _ in range(draws)]
