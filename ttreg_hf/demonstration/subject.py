"""What is demonstrated: a model, its patched form, and what was measured of them. Opened once, for all pictures."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from ttreg_hf.applying import base_name
from ttreg_hf.calibration.calibration_beside import calibration_beside
from ttreg_hf.calibration.calibration_result import CalibrationResult
from ttreg_hf.calibration.usable_constants import why_no_constants
from ttreg_hf.modeling.modeling_ttreg import TTRegModelMixin
from ttreg_hf.pictures.visualization import detection_of, opened, patched_form
from ttreg_hf.publishing.privacy import public_title
from ttreg_hf.report.neuron_switch import State, states_to_show


@dataclass(frozen=True, eq=False)
class Subject:
    """A model to demonstrate.

    Args:
        model: as it was given, stock or patched.
        patched: the model after; `None` where no register neurons are known.
        processor: image processor; `None`: images are float tensors.
        name: Hub id or path of the checkpoint; empty if it has none.
        detection_layer: block whose norms tell outliers, 0-based.
        norm_threshold: L2 norm at that block above which a patch counts as one; `None`: not known.
        constants: rows of constant mode for these weights and neurons; `None`: not measured.
    """

    model: PreTrainedModel
    patched: TTRegModelMixin | None
    processor: Any
    name: str
    detection_layer: int
    norm_threshold: float | None
    constants: Tensor | None

    @classmethod
    def open(
        cls,
        model_or_id: PreTrainedModel | str | Path,
        register_neurons: Any = None,
        *,
        calibration: CalibrationResult | None = None,
        processor: Any = None,
        tower: str | None = None,
        name: str = "",
    ) -> "Subject":
        """Load what has to be loaded, and patch it; arguments and errors as in `demo`."""
        model, processor = opened(model_or_id, processor, tower)
        patched = patched_form(model, register_neurons)
        measured = _measured(model, model_or_id, register_neurons, calibration)
        detection_layer, norm_threshold = detection_of(model, measured)
        has_rows = patched is not None and measured is not None and why_no_constants(patched, measured) is None
        return cls(
            model,
            patched,
            processor,
            name or (str(model_or_id) if isinstance(model_or_id, (str, Path)) else base_name(model)),
            detection_layer,
            norm_threshold,
            measured.constants if has_rows else None,
        )

    @property
    def title(self) -> str:
        """Name of the model, as anyone may read it."""
        return public_title(self.name, self.model)

    @property
    def states(self) -> tuple[State, ...]:
        """In which it is shown."""
        return states_to_show(self.patched, self.constants)


def _measured(
    model: PreTrainedModel, model_or_id: Any, register_neurons: Any, calibration: CalibrationResult | None
) -> CalibrationResult | None:
    """The calibration given either way, else the one beside the checkpoint; `None` if it says that it is of others.

    Raises:
        ValueError: one that was given is of other weights.
    """
    if calibration is not None:
        if calibration.on_other_weights:
            return None
        calibration.check_weights(model)
        return calibration
    if isinstance(register_neurons, CalibrationResult):
        return register_neurons  # or it could not have patched the model
    if register_neurons is not None or not isinstance(model_or_id, (str, Path)):
        return None
    beside = calibration_beside(model, model_or_id)
    return None if beside is None or beside.on_other_weights else beside
