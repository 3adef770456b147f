"""Contrast, consistency and sparsity of neurons, worked out by hand."""

import pytest
import torch
from families import images

from ttreg_hf.calibration.candidates import measure_candidates
from ttreg_hf.images.batches import Batch
from ttreg_hf.measuring.outlier_rule import OutlierRule
from ttreg_hf.measuring.recorder import Recorder
from ttreg_hf.measuring.tower import VisionTower
from ttreg_hf.planted import planted_model, synthetic_images
from ttreg_hf.register_neuron import RegisterNeuron


@torch.no_grad()
def test_figures_are_means_over_the_images_that_have_an_outlier(bare_case):
    tower = VisionTower.of(bare_case.stock_model())
    layout = tower.layout
    with Recorder(tower, (0, 1)) as recorder:
        recording = recorder(images(5))
    norms_BN = recording.norms_LBT[2, :, layout.patches]
    rule = OutlierRule(2, float(norms_BN.quantile(0.9)))
    neurons = [RegisterNeuron(layer, place, 1.0) for layer, place in ((1, 3), (0, 5), (1, 0))]
    parts = [Batch(part, (0,) * len(part)) for part in images(5).split(2)]
    found = measure_candidates(tower, parts, rule, neurons)
    assert [candidate.register_neuron for candidate in found] == neurons
    for candidate in found:
        neuron = candidate.register_neuron
        acts_BN = recording.acts_by_layer[neuron.layer][:, layout.patches, neuron.neuron].abs()
        rows = []
        for acts_N, mask_N in zip(acts_BN, norms_BN > rule.norm_threshold, strict=True):
            if mask_N.any():
                on, off = float(acts_N[mask_N].mean()), float(acts_N[~mask_N].mean())
                rows.append([on - off, on > 2 * off, float((acts_N < 0.5).float().mean())])
        expected = torch.tensor(rows, dtype=torch.float64).mean(0).tolist()
        assert [candidate.contrast, candidate.consistency, candidate.sparsity] == pytest.approx(expected, abs=1e-5)


def test_a_loud_neuron_is_told_from_those_that_fire_on_outliers():
    """It is as active on all patches: neither consistent nor sparse, whatever it is worth on the outliers."""
    planted = planted_model(neurons_per_layer={2: 2})
    with torch.no_grad():
        planted.model.encoder.layer[2].mlp.fc1.bias[0] = 1e4
        planted.model.encoder.layer[2].mlp.fc2.weight[:, 0] = 0
    loud = RegisterNeuron(2, 0, 1e4)
    batches, rule = [Batch(synthetic_images(8, seed=3), tuple(range(8)))], OutlierRule(4, planted.norm_threshold)
    neurons = [loud, *planted.register_neurons]
    found = measure_candidates(VisionTower.of(planted.model), batches, rule, neurons)
    assert [candidate.register_neuron for candidate in found] == neurons
    assert found[0].consistency == 0.0 == found[0].sparsity
    assert all(candidate.consistency == 1.0 and candidate.sparsity > 0.8 for candidate in found[1:])


def test_without_outliers_all_is_zero():
    planted = planted_model()
    batches = [Batch(synthetic_images(2, seed=3), (0, 1))]
    found = measure_candidates(VisionTower.of(planted.model), batches, OutlierRule(4, 1e9), planted.register_neurons)
    assert {(c.contrast, c.consistency) for c in found} == {(0.0, 0.0)}
