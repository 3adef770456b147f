"""Settings of a wrong type fail with the field's name, wherever they are given."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from ttreg_hf import CalibrationConfig, EvaluationConfig, GateConfig, evaluate
from ttreg_hf.calibration.config import RunConfig
from ttreg_hf.evaluation.examples import Columns
from ttreg_hf.evaluation.object_discovery import ObjectDiscovery
from ttreg_hf.records import check_types


@dataclass(frozen=True)
class Settings:
    count: int = 1
    share: float = 0.5
    name: str | None = None
    wanted: bool = False
    folder: Path | None = None
    layers: tuple[int, ...] = ()
    size: int | str | None = None
    anything: Any = None
    kind: ClassVar[str] = "settings"

    def __post_init__(self) -> None:
        check_types(self)


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("count", "500", "a whole number"),
        ("count", 5.0, "a whole number"),
        ("count", True, "a whole number"),
        ("count", None, "a whole number"),
        ("share", "high", "a number"),
        ("share", False, "a number"),
        ("name", 3, "a string or None"),
        ("wanted", 1, "true or false"),
        ("wanted", "no", "true or false"),
        ("folder", "runs", "a Path or None"),
        ("layers", "12", "a tuple, each item a whole number"),
        ("layers", (1, "2"), "a tuple, each item a whole number"),
        ("layers", 3, "a tuple, each item a whole number"),
        ("size", 2.5, "a whole number or a string or None"),
    ],
)
def test_a_value_of_another_type_is_refused_by_the_fields_name(field, value, rule):
    with pytest.raises(TypeError) as error:
        Settings(**{field: value})
    assert str(error.value) == f"`{field}` is {rule}, got {value!r}."


def test_values_that_are_as_good_pass():
    Settings(np.int64(3), 2, "x", True, Path("runs"), [1, np.int32(2)], "original", anything=object())
    Settings(share=np.float32(0.5), size=np.int64(224))


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        (CalibrationConfig, "num_images", "500"),
        (CalibrationConfig, "norm_threshold", "150"),
        (CalibrationConfig, "detection_layer", 4.5),
        (CalibrationConfig, "detect_on_prefix", "yes"),
        (RunConfig, "state_directory", "runs"),
        (RunConfig, "workers", 1.5),
        (GateConfig, "max_drift", None),
        (EvaluationConfig, "num_images", "all"),
        (EvaluationConfig, "confidence", "95 %"),
        (Columns, "label", 0),
    ],
)
def test_all_settings_name_the_field(kind, field, value):
    with pytest.raises(TypeError, match=f"^`{field}` is "):
        kind(**{field: value})


def test_a_task_with_a_setting_of_another_type_is_refused_before_anything_is_loaded():
    with pytest.raises(TypeError, match=r"^`features` is a tuple, each item a string, got 'key'\."):
        evaluate("no/such-model", [], task=ObjectDiscovery(features="key"))
