"""Comparing reports of norms."""

from dataclasses import fields

import pytest

from ttreg_hf.measuring.norms import NormReport


def assert_equal_reports(found: NormReport, expected: NormReport, *, rel: float) -> None:
    """Field by field: numbers to a relative difference, what is known of positions exactly."""
    assert found.positions == expected.positions
    for name in (field.name for field in fields(NormReport) if field.name != "positions"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=rel), name
