"""Which rows an evaluation measures, and what is to be said of those that it does not."""

from collections.abc import Iterator
from dataclasses import dataclass

from transformers import PreTrainedModel

from ttreg_hf.calibration.calibration_result import CalibrationResult
from ttreg_hf.calibration.usable_constants import why_no_constants
from ttreg_hf.evaluation.constant_row import constant_row
from ttreg_hf.evaluation.evaluation_config import EvaluationConfig
from ttreg_hf.evaluation.evaluation_result import CalibratedThreshold
from ttreg_hf.evaluation.manual_baselines import manual_baselines, not_dense
from ttreg_hf.evaluation.rows import BASE, CONSTANT, ROWS, TRAINED, Row, model_rows
from ttreg_hf.evaluation.tasks import Task
from ttreg_hf.evaluation.whole_image import whole_size
from ttreg_hf.modeling.modeling_ttreg import TTRegModelMixin


@dataclass(frozen=True)
class MeasuredRows:
    """The rows of an evaluation.

    Args:
        rows: by name, the base model first.
        threshold: by which `interpolated` and `masked` tell outlier patches; `None` without such a row.
        left_out: rows of a dense task that could not be measured, and why; empty where rows were asked for by name.
    """

    rows: dict[str, Row]
    threshold: CalibratedThreshold | None
    left_out: dict[str, str]

    def reasons(self) -> Iterator[str]:
        """One sentence a reason for which rows are left out."""
        for why in dict.fromkeys(self.left_out.values()):
            yield f"left out: {', '.join(name for name in self.left_out if self.left_out[name] == why)}: {why}"

    def is_for_other_sizes(self, image_size: int | str | None) -> bool:
        """Whether the threshold was found at another size than that which whole images are resized to.

        Args:
            image_size: as in `EvaluationConfig`.
        """
        size = whole_size(self.rows[BASE].tower, image_size)
        return self.threshold is not None and size != self.threshold.image_size


def measured_rows(
    patched: TTRegModelMixin,
    task: Task,
    *,
    calibration: CalibrationResult | None,
    trained: PreTrainedModel | None,
    config: EvaluationConfig,
) -> MeasuredRows:
    """Those that there can be, or those asked for by name, and always the base model.

    Args:
        patched: a patched model.
        task: dense, or not.
        calibration: of the base model's weights, for what is done by hand; `None`: there is none.
        trained: a model with trained registers; `None`: none was given.
        config: which rows are asked for; the seed of the random neurons.

    Raises:
        ValueError: a row was asked for that there cannot be.
    """
    rows = {name: Row(model) for name, model in model_rows(patched, seed=config.seed).items()}
    is_dense = getattr(task, "is_dense", False)
    by_hand = manual_baselines(rows[BASE].model, calibration) if is_dense else not_dense(task.name)
    rows |= by_hand.rows
    left_out = dict(by_hand.left_out)
    why_not = why_no_constants(patched, calibration)
    if calibration is not None and why_not is None:
        rows[CONSTANT] = constant_row(patched, calibration)
    elif why_not is not None:
        left_out[CONSTANT] = why_not
    if trained is not None:
        rows[TRAINED] = Row(trained)
    chosen = _chosen(rows, left_out, config.rows)
    threshold = None if by_hand.rows.keys().isdisjoint(chosen) else by_hand.threshold
    return MeasuredRows(chosen, threshold, by_hand.left_out if is_dense and config.rows is None else {})


def _chosen(rows: dict[str, Row], left_out: dict[str, str], names: tuple[str, ...] | None) -> dict[str, Row]:
    for name in names or ():
        if name not in rows:
            why = left_out.get(name, "no model with trained registers was given")
            raise ValueError(f"The row {name!r} cannot be measured: {why}. Or leave it out of `rows` (`--row`).")
    return {name: rows[name] for name in ROWS if name in rows and (names is None or name in (BASE, *names))}
