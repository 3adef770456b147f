"""The model card of a whole calibration: gate, intervals and controls are in it."""

import re

from ttreg_hf import Dinov2TTRegConfig
from ttreg_hf.publishing.card import model_card


def test_card_shows_gate_intervals_and_controls(result):
    neurons = [[neuron.layer, neuron.neuron] for neuron in result.register_neurons]
    config = Dinov2TTRegConfig(register_neurons=neurons, architectures=["Dinov2TTRegModel"])
    text, verification = model_card(config, result).text, result.verification
    assert len(verification.checks) >= 4
    for check in verification.checks:
        assert f"| {check.name} | {check.value:.4f} |" in text
        assert f"| {check.bound:.4f} |" in text
    low, high = verification.outlier_ratio_interval
    assert f"| {low:.4f} to {high:.4f} |" in text
    low, high = verification.feature_similarity_interval
    assert f"| {1 - high:.4f} to {1 - low:.4f} |" in text
    zeroed = verification.controls.zeroed
    assert f"| zeroed, not moved | {zeroed.outlier_ratio:.4f} | {1 - zeroed.feature_similarity:.2g} |" in text
    draws = verification.controls.random
    fewest = min(draws, key=lambda draw: draw.outlier_ratio)
    drift = 1 - fewest.feature_similarity
    row = "of 10 random draws, moved: the fewest outliers"
    assert f"| {row} | {fewest.outlier_ratio:.4f} | {drift:.2g} |" in text
    mean = sum(1 - draw.feature_similarity for draw in draws) / len(draws)
    assert re.search(rf"\| of 10 random draws, moved: mean \| [\d.]+ \| {mean:.2g} \|", text)
    assert f"| {100 * verification.maps.on_register:.2f} % |" in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in tables)
