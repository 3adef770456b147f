"""The row of a model in constant mode, beside the one with a token."""

from ttreg_hf.applying import add_test_time_registers, constants_of
from ttreg_hf.calibration.calibration_result import CalibrationResult
from ttreg_hf.evaluation.rows import Row
from ttreg_hf.modeling.modeling_ttreg import TTRegModelMixin


def why_no_constants(patched: TTRegModelMixin, calibration: CalibrationResult | None) -> str | None:
    """Why a patched model has no such row; `None` if it has."""
    if constants_of(patched) is not None:
        return "the patched model is in constant mode itself"
    if calibration is None or calibration.constants is None:
        return "constant mode needs a calibration that measured its rows; give one (`--calibration`)"
    listed = [[neuron.layer, neuron.neuron] for neuron in calibration.register_neurons]
    is_of_these = not calibration.on_other_weights and calibration.was_found_on(patched)
    if patched.config.register_neurons != listed or not is_of_these:
        return "the rows of constant mode belong to the neurons and weights that were calibrated, and these are others"
    return None


def constant_row(patched: TTRegModelMixin, calibration: CalibrationResult) -> Row:
    """The same weights and neurons in constant mode."""
    neurons = patched.config.register_neurons
    constants = calibration.constants
    return Row(add_test_time_registers(patched, neurons, test_time_register_mode="constant", constants=constants))
