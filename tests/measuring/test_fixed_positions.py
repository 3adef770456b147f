"""Which places stand out in nearly every image, in the position table too; and what makes them."""

import dataclasses
import json

import pytest
import torch
from benchmarks.planted_kinds import make_known_model
from torch import Tensor

from ttreg_hf.calibration.calibration_run import inspect_norms
from ttreg_hf.calibration.config import CalibrationConfig
from ttreg_hf.known.position_table import position_table
from ttreg_hf.measuring.norms import NormReport
from ttreg_hf.measuring.patch_norms import PatchNorms
from ttreg_hf.measuring.position_config import PositionConfig
from ttreg_hf.measuring.position_maps import position_maps, table_report
from ttreg_hf.measuring.position_report import TABLE, place_on
from ttreg_hf.planted import synthetic_images
from ttreg_hf.records import from_json

STAGES, IMAGES = 4, 20
SPIKES = {(12, 1): 313.0, (2, 15): 231.0, (3, 0): 198.0}


def _norms(grid: tuple[int, int], images: int = IMAGES) -> Tensor:
    random = torch.Generator().manual_seed(0)
    return torch.exp(0.1 * torch.randn(STAGES, images, grid[0] * grid[1], generator=random))


def _map(norms: Tensor, grid: tuple[int, int]):
    (found,) = position_maps({grid: norms}, PositionConfig())
    return found


def test_a_place_is_fixed_from_the_stage_on_at_which_it_stands_out_in_four_of_five_images():
    norms = _norms((4, 6))
    norms[2:, :, 7] *= 10.0  # row 1, column 1
    norms[1:, :16, 23] *= 10.0  # row 3, column 5, in 80 %
    norms[1:, :15, 2] *= 10.0  # in 75 %
    found = _map(norms, (4, 6))
    assert [(position.place, position.begins) for position in found.fixed] == [((1, 1), 2), ((3, 5), 1)]
    assert found.shares[3][2] == pytest.approx(0.75)
    assert found.ratios[3][7] == pytest.approx(10, rel=0.1)
    assert found.fixed[0].ratios == tuple(stage[7] for stage in found.ratios)


def test_an_image_is_measured_by_its_own_median():
    norms = _norms((4, 4)) * torch.logspace(0, 3, IMAGES)[None, :, None]
    assert _map(norms, (4, 4)).fixed == ()


def test_places_that_stand_out_in_turns_are_not_fixed():
    norms = _norms((4, 4))
    for image in range(IMAGES):
        norms[:, image, image % 16] *= 20.0
    found = _map(norms, (4, 4))
    assert found.fixed == ()
    assert max(found.shares[0]) <= 0.1


def test_every_grid_has_a_map_of_its_own_where_there_are_enough_images():
    tall, wide = _norms((2, 6)), _norms((3, 4), images=9)
    tall[:, :, 11] *= 10.0
    wide[:, :, 0] *= 10.0
    found = position_maps({(3, 4): wide, (2, 6): tall, (1, 12): _norms((1, 12), images=5)}, PositionConfig())
    assert [(each.grid, each.places) for each in found] == [((2, 6), ((1, 5),)), ((3, 4), ((0, 0),))]


def test_rows_of_a_table_that_are_spikes_are_named_with_their_channel_and_its_share():
    """As reported of a SigLIP: the others have norms of 17 to 19."""
    table = torch.randn(16, 16, 96, generator=torch.Generator().manual_seed(0))
    table *= torch.linspace(17, 19, 256).view(16, 16, 1) / table.norm(dim=2, keepdim=True)
    for place, norm in SPIKES.items():
        rest = norm * table[place] / table[place].norm()
        rest[43] = 0.0
        rest *= 0.18**0.5 * norm / rest.norm()
        rest[43] = -(0.82**0.5) * norm
        table[place] = rest
    found = table_report(table, PositionConfig())
    assert {spike.place: round(spike.norm) for spike in found.spikes} == SPIKES
    assert [spike.place for spike in found.spikes] == list(SPIKES)  # the longest first
    assert all(spike.channel == 43 and spike.channel_share == pytest.approx(0.82, abs=1e-4) for spike in found.spikes)
    assert found.median_norm == pytest.approx(18, abs=0.2)
    assert table_report(torch.randn(8, 8, 64), PositionConfig()).spikes == ()


def test_places_of_another_grid_cover_the_same_part_of_the_image():
    assert place_on((12, 1), (16, 16), (8, 8)) == (6, 0)
    assert place_on((6, 0), (8, 8), (16, 16)) == (13, 1)
    assert place_on((0, 3), (2, 4), (8, 8)) == (2, 7)
    assert all(place_on((row, 5), (8, 8), (8, 8)) == (row, 5) for row in range(8))


def _report(family: str, kind: str, seed: int = 1, size: int = 112):
    known = make_known_model(family, kind, trigger="bright", seed=seed)
    images = synthetic_images(12, size=size, seed=50)
    norms = inspect_norms(known.model, images, config=CalibrationConfig(num_images=12))
    return known, norms


@pytest.mark.parametrize("family", ["siglip", "siglip2", "dinov2", "vit", "clip"])
def test_spikes_of_the_table_are_found_as_the_source(family):
    known, norms = _report(family, "table spikes")
    (source,) = norms.positions.sources
    assert source.stage == TABLE
    assert set(source.places) == set(known.fixed_positions) == set(norms.positions.in_table(source.places))
    assert source.channel_share == pytest.approx(0.82, abs=0.01)
    assert norms.fixed_position_share == 1.0  # none of it passes for content
    assert position_table(known.model)[source.places[0]].abs().argmax() == source.channel


@pytest.mark.parametrize(("family", "size"), [("siglip2", 140), ("siglip", 168), ("dinov2", 84)])
def test_interpolated_tables_are_told_by_the_grid_of_the_images(family, size):
    known, norms = _report(family, "table spikes", seed=0, size=size)
    side = size // 14
    assert norms.positions.maps[0].grid == (side, side)
    assert norms.positions.table.grid == (8, 8)
    assert {source.stage for source in norms.positions.sources} == {TABLE}
    assert set(norms.positions.in_table(norms.positions.places)) == set(known.fixed_positions)


@pytest.mark.parametrize("family", ["siglip", "dinov2", "dinov3", "dinov2-swiglu"])
def test_a_neuron_that_writes_at_fixed_places_is_named_with_its_block(family):
    known, norms = _report(family, "fixed positions")
    (source,) = norms.positions.sources
    (layer,) = {neuron.layer for neuron in known.register_neurons}
    assert source.stage == f"block {layer}"
    assert source.mlp_share > 0.9
    assert (layer, source.neuron) in known.planted_pairs
    assert 0.3 < source.neuron_share < 0.7  # there are two of them


@pytest.mark.parametrize("family", ["siglip", "vit"])
def test_what_attention_writes_at_fixed_places_is_no_neuron_s(family):
    _, norms = _report(family, "attention at fixed positions")
    (source,) = norms.positions.sources
    assert source.stage == "block 4"
    assert source.mlp_share < 0.1
    assert source.neuron is None


def test_the_block_that_enlarges_what_the_table_begins_is_named():
    known = make_known_model("siglip", "table spikes", trigger="bright", seed=1)
    block = known.model.encoder.layers[6]
    with torch.no_grad():
        channel = int(position_table(known.model)[known.fixed_positions[0]].abs().argmax())
        block.mlp.fc1.weight[5] = 0.0
        block.mlp.fc1.weight[5, channel], block.mlp.fc1.bias[5] = 10.0, -1.0
        block.mlp.fc2.weight[:, 5] = 0.0
        block.mlp.fc2.weight[channel, 5] = 3.0
    norms = inspect_norms(known.model, synthetic_images(12, seed=50))
    assert norms.positions.sources[0].stage == TABLE
    amplifier = norms.positions.amplifier
    assert (amplifier.stage, amplifier.neuron) == ("block 6", 5)
    assert amplifier.growth > 2


@pytest.mark.parametrize("kind", ["nothing", "planted", "content", "student t"])
def test_other_models_have_no_fixed_place(kind):
    _, norms = _report("siglip", kind)
    assert norms.positions.places == ()
    assert norms.positions.sources == ()
    assert norms.fixed_position_share == 0


def test_two_parts_of_the_images_give_what_all_give():
    norms = _norms((4, 4))
    norms[:, :, 3] *= 10.0
    keys = [(image, str(image)) for image in range(IMAGES)]
    whole, first, second = PatchNorms(), PatchNorms(), PatchNorms()
    whole.add(norms[0], norms[1:], keys, (4, 4))
    first.add(norms[0, :7], norms[1:, :7], keys[:7], (4, 4))
    second.add(norms[0, 7:], norms[1:, 7:], keys[7:], (4, 4))
    first.join(second)
    assert position_maps(first.by_grid(), PositionConfig()) == position_maps(whole.by_grid(), PositionConfig())


def test_a_report_is_read_from_its_json():
    _, report = _report("siglip", "table spikes")
    assert from_json(NormReport, json.loads(json.dumps(dataclasses.asdict(report)))) == report
