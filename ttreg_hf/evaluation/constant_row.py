"""The row of a model in constant mode, beside the one with a token."""

from torch import Tensor
from transformers import PreTrainedModel

from ttreg_hf.applying import add_test_time_registers, constants_of
from ttreg_hf.calibration.calibration_result import CalibrationResult
from ttreg_hf.evaluation.rows import Row
from ttreg_hf.modeling.modeling_ttreg import TTRegModelMixin


def why_no_constants(patched: TTRegModelMixin, calibration: CalibrationResult | None) -> str | None:
    """Why a patched model has no such row; `None` if it has."""
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


def constant_row(patched: TTRegModelMixin, calibration: CalibrationResult) -> Row:
    """The same weights and neurons in constant mode."""
    return Row(in_constant_mode(patched, calibration.constants))


def in_constant_mode(patched: TTRegModelMixin, constants: Tensor | None) -> PreTrainedModel:
    """A patched model's neurons and spikes in constant mode, with these rows `(L - l, D)`."""
    return add_test_time_registers(
        patched,
        patched.config.register_neurons,
        test_time_register_mode="constant",
        constants=constants,
        fixed_positions=patched.config.fixed_positions,
    )
