"""One model on some images, against its hidden states."""

import pytest
import torch
from families import NEURONS, images

from ttreg_hf.applying import add_test_time_registers
from ttreg_hf.images.batches import Batch
from ttreg_hf.measuring.measurement import measure
from ttreg_hf.measuring.outlier_rule import OutlierRule
from ttreg_hf.measuring.tower import VisionTower

from .features import head_feature


@torch.no_grad()
def test_measure_equals_hidden_states(bare_case):
    tower, prefix = VisionTower.of(bare_case.stock_model()), bare_case.family.num_prefix_tokens
    outputs = tower.model(**tower.inputs(images(5)), output_hidden_states=True)
    norms_LBN = torch.stack([state[:, prefix:].norm(dim=-1) for state in outputs.hidden_states[1:]])
    threshold = float(norms_LBN[1].median())
    batches = [Batch(part, (0,) * len(part)) for part in images(5).split(2)]
    found = measure(tower, batches, OutlierRule(1, threshold))
    assert found.num_images == 5
    assert found.outlier_fraction == pytest.approx((norms_LBN[1] > threshold).float().mean().item())
    torch.testing.assert_close(found.norms.max_L.float(), norms_LBN.amax((1, 2)))
    assert found.register_norm == 0.0
    torch.testing.assert_close(found.features_BD, head_feature(bare_case, outputs), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_measure_keeps_registers_and_patches_apart(bare_case):
    options = {"num_test_time_registers": 2, "output_registers": True}
    patched = add_test_time_registers(bare_case.stock_model(), NEURONS, **options)
    tower = VisionTower.of(patched)
    states = patched(**tower.inputs(images()), output_hidden_states=True).hidden_states[1:]
    norms_LBT, prefix = torch.stack([state.norm(dim=-1) for state in states]), bare_case.family.num_prefix_tokens
    found = measure(tower, [Batch(images(), (0, 1, 2))], OutlierRule(2, 1.0))
    torch.testing.assert_close(found.norms.max_L.float(), norms_LBT[:, :, prefix + 2 :].amax((1, 2)))
    assert found.register_norm == pytest.approx(norms_LBT[2, :, prefix : prefix + 2].mean().item())
