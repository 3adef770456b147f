"""Which form of the shift a patched model runs."""

from transformers import PreTrainedModel

from ttreg_hf.modeling.modeling_ttreg import TTRegModelMixin
from ttreg_hf.modeling.registers import shift_neurons


def use_triton(model: PreTrainedModel, enabled: bool = True) -> None:
    """Let a patched model shift its register neurons with one Triton kernel a layer, or in plain PyTorch again.

    The kernel runs in eager CUDA forward passes that record no gradient, in float16, bfloat16 and float32, for
    `shift_fill` `"zero"` and `"keep"`; in all other cases the plain form does. `print(model)` names the form. It is
    not saved.

    Raises:
        ValueError: not a patched model, or no Triton 3.3 or newer is installed.
    """
    if not isinstance(model, TTRegModelMixin):
        raise ValueError(
            f"The kernel shifts register neurons of patched models, got a {type(model).__name__}. Patch it with "
            "`add_test_time_registers` first."
        )
    if not enabled:
        model.registers.shift = shift_neurons
        return
    try:
        from ttreg_hf.kernels.shift_kernel import shift_neurons_with_triton
    except ImportError as error:
        raise ValueError(
            "`use_triton` needs Triton 3.3 or newer, which cannot be imported here. Install it (PyTorch's CUDA "
            "builds from 2.7 on bring it along), or keep the plain form, which gives the same."
        ) from error
    model.registers.shift = shift_neurons_with_triton
