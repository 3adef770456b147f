"""Settings that no model allows are refused by the config itself."""

import dataclasses

import pytest

from ttreg_hf.calibration.config import CalibrationConfig


@pytest.mark.parametrize("name", ["num_images", "batch_size", "top_k", "norm_threshold"])
@pytest.mark.parametrize("value", [0, -1])
def test_counts_and_threshold_are_above_zero(name, value):
    with pytest.raises(ValueError, match=rf"`{name}` is above 0, got {value}"):
        CalibrationConfig(**{name: value})


def test_a_threshold_is_a_number_above_zero_and_a_count_is_whole():
    with pytest.raises(ValueError, match="`norm_threshold` is above 0, got nan"):
        CalibrationConfig(norm_threshold=float("nan"))
    with pytest.raises(TypeError, match="`top_k` is a whole number or None, got nan"):
        CalibrationConfig(top_k=float("nan"))


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_max_active_fraction_is_a_share(value):
    with pytest.raises(ValueError, match=rf"`max_active_fraction` is a share from 0 to 1, got {value}"):
        CalibrationConfig(max_active_fraction=value)


@pytest.mark.parametrize("value", [0.0, 1.0, None])
def test_max_active_fraction_includes_its_bounds(value):
    assert CalibrationConfig(max_active_fraction=value).max_active_fraction == value


def test_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        CalibrationConfig().top_k = 3  # type: ignore[misc]
