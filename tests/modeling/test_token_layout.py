"""The layout `[prefix | test-time registers | patches]`."""

import re

import pytest
import torch

from ttreg_hf.modeling.registers import TokenLayout

LAYOUT = TokenLayout(num_prefix_tokens=2, num_test_time_registers=1, patch_size=(7, 14))
WITHOUT = TokenLayout(num_prefix_tokens=2, num_test_time_registers=0, patch_size=(7, 14))


def _tokens(count: int) -> torch.Tensor:
    return torch.arange(1.0, count + 1).reshape(1, count, 1)


@pytest.mark.parametrize("layout", [LAYOUT, WITHOUT, TokenLayout(0, 2, (4, 4)), TokenLayout(0, 0, (4, 4))])
def test_slices_cover_every_token_once_in_order(layout):
    tokens = list(range(9))
    parts = [tokens[layout.prefix], tokens[layout.registers], tokens[layout.patches]]
    assert [len(part) for part in parts[:2]] == [layout.num_prefix_tokens, layout.num_test_time_registers]
    assert [token for part in parts for token in part] == tokens


def test_insert_puts_zeros_between_prefix_and_patches():
    assert LAYOUT.insert(_tokens(4)).flatten().tolist() == [1, 2, 0, 3, 4]


def test_remove_undoes_insert():
    assert torch.equal(LAYOUT.remove(LAYOUT.insert(_tokens(6))), _tokens(6))


def test_remove_from_attention_takes_rows_and_columns_out():
    attention = torch.arange(16.0).reshape(1, 1, 4, 4)
    kept = LAYOUT.remove_from_attention(attention)
    assert kept[0, 0].tolist() == [[0, 1, 3], [4, 5, 7], [12, 13, 15]]


@pytest.mark.parametrize("size", [(2, 3), (14, 42)], ids=["grid", "pixels"])
@pytest.mark.parametrize(("layout", "front"), [(LAYOUT, 3), (WITHOUT, 2)], ids=["with registers", "without"])
def test_patch_map_is_the_image_of_the_patches(layout, front, size):
    found = layout.patch_map(_tokens(front + 6), *size)
    assert found.shape == (1, 1, 2, 3)
    assert (found[0, 0] - front).tolist() == [[1, 2, 3], [4, 5, 6]]


def test_patch_map_allows_images_that_patches_do_not_fill():
    assert LAYOUT.patch_map(_tokens(9), 20, 55).shape == (1, 1, 2, 3)


def test_patch_map_keeps_the_channels_of_a_patch_together():
    hidden = torch.randn(2, 3 + 6, 5)
    found = LAYOUT.patch_map(hidden, 2, 3)
    assert torch.equal(found[1, :, 1, 2], hidden[1, 3 + 5])


def test_patch_map_of_tokens_that_do_not_fill_the_grid_says_what_it_needs():
    expected = f"Give `patch_map` `pixel_values`' size: 5 patches, got (2, 3), {LAYOUT}."
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        LAYOUT.patch_map(_tokens(8), 14, 42)
