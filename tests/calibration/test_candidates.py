"""Contrast, consistency and sparsity of neurons, worked out by hand; loud neurons come last."""

import pytest
import torch
from families import images

from ttreg_hf.calibration.candidates import rank_by_contrast
from ttreg_hf.calibration.config import CandidateConfig
from ttreg_hf.images.batches import Batch
from ttreg_hf.measuring.outlier_rule import OutlierRule
from ttreg_hf.measuring.recorder import Recorder
from ttreg_hf.measuring.tower import VisionTower
from ttreg_hf.planted import planted_model, synthetic_images
from ttreg_hf.register_neuron import RegisterNeuron

CONFIG = CandidateConfig()


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
    found = rank_by_contrast(tower, parts, rule, neurons)
    assert list(found) == sorted(found, key=lambda c: (c.fires_everywhere(CONFIG), -c.contrast))
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


def test_a_neuron_that_fires_everywhere_comes_after_those_that_fire_on_outliers():
    planted = planted_model(neurons_per_layer={2: 2})
    with torch.no_grad():
        planted.model.encoder.layer[2].mlp.fc1.bias[0] = 1e4
        planted.model.encoder.layer[2].mlp.fc2.weight[:, 0] = 0
    loud = RegisterNeuron(2, 0, 1e4)
    batches = [Batch(synthetic_images(8, seed=3), tuple(range(8)))]
    found = rank_by_contrast(
        VisionTower.of(planted.model),
        batches,
        OutlierRule(4, planted.norm_threshold),
        [loud, *planted.register_neurons],
    )
    assert {c.register_neuron for c in found[:2]} == set(planted.register_neurons)
    assert found[2].consistency == 0.0 == found[2].sparsity
    assert all(c.consistency == 1.0 and c.sparsity > 0.8 for c in found[:2])


def test_a_neuron_that_fires_everywhere_comes_last_whatever_its_contrast():
    """Its contrast is a hundred times the others', but in no image does it single the outliers out."""
    planted = planted_model(neurons_per_layer={2: 2})
    hot, on_outliers = 0, planted.register_neurons[0].neuron
    with torch.no_grad():
        mlp = planted.model.encoder.layer[2].mlp
        mlp.fc1.weight[hot] = 100 * mlp.fc1.weight[on_outliers]
        mlp.fc1.bias[hot] = 1e6
        mlp.fc2.weight[:, hot] = 0
    batches = [Batch(synthetic_images(8, seed=3), tuple(range(8)))]
    rule = OutlierRule(4, planted.norm_threshold)
    *first, last = rank_by_contrast(
        VisionTower.of(planted.model), batches, rule, [RegisterNeuron(2, hot, 1e6), *planted.register_neurons]
    )
    assert last.register_neuron.neuron == hot
    assert last.fires_everywhere(CONFIG)
    assert not any(candidate.fires_everywhere(CONFIG) for candidate in first)
    assert last.contrast > 10 * first[0].contrast


def test_without_outliers_all_is_zero():
    planted = planted_model()
    batches = [Batch(synthetic_images(2, seed=3), (0, 1))]
    found = rank_by_contrast(VisionTower.of(planted.model), batches, OutlierRule(4, 1e9), planted.register_neurons)
    assert {(c.contrast, c.consistency) for c in found} == {(0.0, 0.0)}
