"""The row of a model in constant mode, beside the one with a token."""

from torch import Tensor
from transformers import PreTrainedModel

from ttreg_hf.applying import add_test_time_registers
from ttreg_hf.calibration.calibration_result import CalibrationResult
from ttreg_hf.evaluation.rows import Row
from ttreg_hf.modeling.modeling_ttreg import TTRegModelMixin


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
