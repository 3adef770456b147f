"""Whether the rows of constant mode that a calibration measured are those of a patched model."""

from ttreg_hf.applying import constants_of
from ttreg_hf.calibration.calibration_result import CalibrationResult
from ttreg_hf.modeling.modeling_ttreg import TTRegModelMixin


def why_no_constants(patched: TTRegModelMixin, calibration: CalibrationResult | None) -> str | None:
    """Why a calibration has no rows of constant mode for this model, which is in token mode; `None` if it has."""
    if constants_of(patched) is not None:
        return "the patched model is in constant mode itself"
    if calibration is None:
        return "constant mode needs a calibration that measured its rows; give one (`--calibration`)"
    if calibration.constants is None:
        return f"the calibration, which is `{calibration.verdict}`, measured no rows of constant mode"
    listed = [[neuron.layer, neuron.neuron] for neuron in calibration.register_neurons]
    is_of_these = not calibration.on_other_weights and calibration.was_found_on(patched)
    if patched.config.register_neurons != listed or not is_of_these:
        return "the rows of constant mode belong to the neurons and weights that were calibrated, and these are others"
    return None
