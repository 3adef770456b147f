"""What a setting left at `None` becomes, which layers are allowed, and which stage sees which image."""

import dataclasses
import hashlib
from collections import Counter

import pytest
import torch
from families import BARE_CASES, Case

from ttreg_hf.calibration.config import CalibrationConfig
from ttreg_hf.calibration.inspection import Inspection
from ttreg_hf.calibration.search import (
    AUTOMATIC,
    SCORE,
    SELECT,
    VERIFY,
    Roles,
    Search,
    checked_layers,
    resolved,
    search_of,
)
from ttreg_hf.measuring.norms import NormStatistics, OutlierCounts, norm_report
from ttreg_hf.measuring.outlier_rule import OutlierRule
from ttreg_hf.measuring.tower import VisionTower

DINOV2 = next(case for case in BARE_CASES if case.family.name == "dinov2")
CLIP = next(case for case in BARE_CASES if case.family.name == "clip")
RULE = OutlierRule(1, 10.0)


def _config(**fields: object) -> CalibrationConfig:
    return CalibrationConfig(**fields)


def _inspection(first_layer: int | None, last_layer: int | None) -> Inspection:
    statistics = NormStatistics(3, torch.device("cpu"))
    statistics.add(torch.ones(3, 2, 3))
    counts = OutlierCounts(2, 0, (0.0,) * 3, None)
    return Inspection(norm_report(statistics, 1, 10.0, counts), RULE, first_layer, last_layer)


def test_negative_layers_count_from_the_end(bare_case):
    config = _config(detection_layer=-1, first_layer=-3, last_layer=-2)
    checked = checked_layers(config, VisionTower.of(bare_case.stock_model()))
    assert (checked.detection_layer, checked.first_layer, checked.last_layer) == (2, 0, 1)


def test_layers_left_open_stay_open(bare_case):
    assert checked_layers(_config(), VisionTower.of(bare_case.stock_model())) == _config()


@pytest.mark.parametrize(("case", "layer"), [(DINOV2, 1), (CLIP, 2)], ids=["dinov2", "clip"])
def test_the_default_detection_layer_is_the_familys(case: Case, layer: int):
    assert VisionTower.of(case.stock_model()).default_detection_layer == layer


@pytest.mark.parametrize("name", ["detection_layer", "first_layer", "last_layer"])
@pytest.mark.parametrize("layer", [3, -4, 99])
def test_a_layer_out_of_range_is_refused_and_the_range_named(name, layer):
    message = rf"`{name}` is a layer from -3 to 2 \(this model has 3 blocks\), got {layer}"
    with pytest.raises(ValueError, match=message):
        checked_layers(_config(**{name: layer}), VisionTower.of(DINOV2.stock_model()))


@pytest.mark.parametrize(("first", "last"), [(2, 1), (-1, 0)])
def test_an_empty_range_is_refused(first, last):
    with pytest.raises(ValueError, match=rf"`first_layer` is at most `last_layer`, got 2 and {last}"):
        checked_layers(_config(first_layer=first, last_layer=last), VisionTower.of(DINOV2.stock_model()))


@pytest.mark.parametrize(
    ("seen", "given", "expected"),
    [
        ((1, 2), (None, None), (1, 2)),
        ((None, None), (None, None), (0, 1)),
        ((1, 2), (2, None), (2, 2)),
        ((0, 0), (2, None), (2, 2)),
        ((1, 2), (None, 0), (0, 0)),
        ((1, 2), (0, 2), (0, 2)),
    ],
    ids=[
        "as seen",
        "nothing seen: up to the detection block",
        "first given",
        "first above last",
        "last below",
        "both",
    ],
)
def test_the_search_is_bounded_by_what_is_given_else_by_what_was_seen(seen, given, expected):
    config = _config(first_layer=given[0], last_layer=given[1])
    assert search_of(config, _inspection(*seen)) == Search(RULE, *expected)


def test_everything_is_filled_in():
    checked = checked_layers(_config(top_k=3, last_layer=-1), VisionTower.of(DINOV2.stock_model()))
    found = resolved(checked, _inspection(1, 1))
    assert found == _config(top_k=3, norm_threshold=10.0, detection_layer=1, first_layer=1, last_layer=2)


def test_automatic_settings_are_fields_that_default_to_none():
    defaults = {field.name: field.default for field in dataclasses.fields(CalibrationConfig)}
    assert all(defaults[name] is None for name in AUTOMATIC)


@pytest.mark.parametrize(
    ("count", "each"), [(0, 0), (1, 0), (6, 3), (16, 8), (24, 8), (48, 8), (71, 8), (72, 9), (800, 100)]
)
def test_an_eighth_verifies_but_at_least_eight_photographs(count, each):
    roles = Roles.of(range(count), seed=3)
    counts = Counter(roles.role(photograph) for photograph in range(count))
    assert (counts[VERIFY], counts[SELECT], counts[SCORE]) == (each, each, count - 2 * each)


def test_roles_depend_on_photograph_and_seed_only():
    roles, again, other = Roles.of(range(64), 0), Roles.of(list(range(63, -1, -1)), 0), Roles.of(range(64), 1)
    found = [roles.role(photograph) for photograph in range(64)]
    assert found == [again.role(photograph) for photograph in range(64)]
    assert found != [other.role(photograph) for photograph in range(64)]
    assert {role: [place for place in range(64) if found[place] == role] for role in (SELECT, VERIFY)} == WRITTEN


def test_those_that_verify_are_the_lowest_hashes_however_many_there_are():
    """So that more photographs keep the order, and only the cut moves."""
    small, large = Roles.of(range(64), 0), Roles.of(range(640), 0)
    by_hash = sorted(range(640), key=lambda photograph: hashlib.sha256(f"0:{photograph}".encode()).digest())
    assert {place for place in range(640) if large.role(place) == VERIFY} == set(by_hash[:80])
    assert {place for place in range(64) if small.role(place) == VERIFY} == {at for at in by_hash if at < 64} & set(
        [at for at in by_hash if at < 64][:8]
    )


# written down: a split that changes between versions or machines makes results incomparable
WRITTEN = {"select": [4, 7, 9, 33, 37, 45, 61, 63], "verify": [15, 18, 20, 25, 36, 44, 46, 57]}
