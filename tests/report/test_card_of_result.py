"""The model card of a whole calibration: gate, intervals and controls are in it."""

from ttreg_hf import Dinov2TTRegConfig
from ttreg_hf.card import model_card


def test_card_shows_gate_intervals_and_controls(reported):
    neurons = [[neuron.layer, neuron.neuron] for neuron in reported.result.register_neurons]
    config = Dinov2TTRegConfig(register_neurons=neurons, architectures=["Dinov2TTRegModel"])
    text, verification = model_card(config, reported.result).text, reported.result.verification
    for check in verification.checks:
        assert f"| {check.name} | {check.value:.4f} |" in text
        assert f"| {check.bound:.4f} |" in text
    low, high = verification.outlier_ratio_interval
    assert f"| {low:.4f} to {high:.4f} |" in text
    low, high = verification.feature_similarity_interval
    assert f"| {1 - high:.4f} to {1 - low:.4f} |" in text
    zeroed = verification.controls.zeroed
    assert f"| zeroed, not moved | {zeroed.outlier_ratio:.4f} | {1 - zeroed.feature_similarity:.4f} |" in text
    fewest = min(draw.outlier_ratio for draw in verification.controls.random)
    assert f"| 10 random draws, moved: the fewest outliers, the largest drift | {fewest:.4f} |" in text
    assert f"| {100 * verification.maps.on_register:.2f} % |" in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in tables)
