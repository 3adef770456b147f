"""Which rows of a position table can be taken away, and what is said where none can."""

import pytest
from families import BARE_CASES
from modeling.constant_laws import SIDE, has_a_table
from transformers import ViTConfig, ViTModel

from ttreg_hf.applying import add_test_time_registers
from ttreg_hf.known.position_table import position_table

WHY = {
    "dinov3": "it has no learned position table",
    "radio": "a window of the table is cut out",
    "idefics3": "a row of the table is looked up for each patch",
    "smolvlm": "a row of the table is looked up for each patch",
    "tipsv2": "the table is fitted to an image in another way",
}


@pytest.mark.parametrize("case", BARE_CASES, ids=lambda case: case.name)
def test_rows_of_a_table_are_taken_where_it_is_added_whole_and_no_others(case):
    stock = case.stock_model()
    if not has_a_table(case):
        why = WHY.get(case.family.name, WHY["dinov3"])
        with pytest.raises(ValueError, match=rf"a square position table .* got a \w+: {why}.*Leave `fixed_positions`"):
            add_test_time_registers(stock, [], fixed_positions=[[0, 0]])
        assert add_test_time_registers(stock, [[0, 0]], fixed_positions=[]).config.fixed_positions == []
        return
    table = position_table(case.trunk_of(stock))
    assert table is not None
    assert table.shape[:2] == (SIDE, SIDE)
    last = SIDE - 1
    assert add_test_time_registers(stock, [], fixed_positions=[(0, last)]).config.fixed_positions == [[0, last]]
    for place in ([0, SIDE], [SIDE, 0]):
        with pytest.raises(ValueError, match=rf"row and column of the position table, 0 to {last} .* got \{place}"):
            add_test_time_registers(stock, [], fixed_positions=[place])


@pytest.mark.parametrize(("size", "grid"), [((16, 24), (4, 6)), ((24, 16), (6, 4)), ((8, 32), (2, 8))])
def test_a_table_that_is_not_square_is_seen_by_its_own_grid_and_refused(size, grid):
    """Also where its rows, the prefix among them, would fill a square: 4 x 6 + 1, and 2 x 8."""
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=size, patch_size=4
    )
    model = ViTModel(config)
    table = position_table(model)
    assert table is not None
    assert table.shape[:2] == grid
    assert table[0, 0].data_ptr() == model.embeddings.position_embeddings[0, 1].data_ptr()
    with pytest.raises(ValueError, match=f"not square, but {grid[0]} x {grid[1]}"):
        add_test_time_registers(model, [], fixed_positions=[[0, 0]])


def test_what_is_no_pair_of_numbers_is_refused_by_the_config():
    stock = next(case for case in BARE_CASES if case.family.name == "siglip").stock_model()
    for place in ([1], [0, 1.5], [0, True]):
        with pytest.raises(ValueError, match=r"`fixed_positions` holds \[row, column\] pairs of whole numbers"):
            add_test_time_registers(stock, [], fixed_positions=[place])


def test_a_patched_model_is_given_other_places_or_none():
    stock = next(case for case in BARE_CASES if case.family.name == "siglip").stock_model()
    patched = add_test_time_registers(stock, [], fixed_positions=[[1, 1]])
    assert add_test_time_registers(patched, [], fixed_positions=[[2, 0]]).config.fixed_positions == [[2, 0]]
    assert add_test_time_registers(patched, [[0, 0]]).config.fixed_positions == []
