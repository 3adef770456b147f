"""Forward passes of one size, whatever the batch holds."""

import pytest
import torch
from families import BARE_CASES, images

from ttreg_hf.images.batches import Batch
from ttreg_hf.measuring.batch_limit import BatchLimit
from ttreg_hf.measuring.recorder import Recorder
from ttreg_hf.measuring.tower import VisionTower


@pytest.fixture
def seen(monkeypatch):
    """How many images each forward pass had."""
    counts = []
    record = Recorder.__call__

    def count(recorder, pixel_values):
        counts.append(len(pixel_values))
        return record(recorder, pixel_values)

    monkeypatch.setattr(Recorder, "__call__", count)
    return counts


@pytest.mark.parametrize(("fill_to", "passed"), [(0, 3), (2, 3), (3, 3), (4, 4), (8, 8)])
def test_a_batch_is_filled_up_for_the_forward_pass_and_nobody_sees_it(seen, fill_to, passed):
    tower, batch = VisionTower.of(BARE_CASES[0].stock_model()), Batch(images(3), (4, 6, 8), fill_to=fill_to)
    with Recorder(tower, [0]) as recorder:
        ((places, found),) = BatchLimit().record(recorder, batch)
        expected = recorder(batch.pixel_values)
    assert seen == [passed, 3]
    assert places == (4, 6, 8)
    torch.testing.assert_close(found.norms_LBT, expected.norms_LBT)
    torch.testing.assert_close(found.acts_by_layer, expected.acts_by_layer)
    torch.testing.assert_close(found.embedding_norms_BT, expected.embedding_norms_BT)
    torch.testing.assert_close(found.feature_BD, expected.feature_BD)
