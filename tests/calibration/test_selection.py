"""The smallest set that works, against a truth that is a formula: no model, every set can be worked out by hand."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ttreg_hf.calibration.selection import Selection, SelectionConfig, select
from ttreg_hf.measuring.intervention import Outcome
from ttreg_hf.register_neuron import RegisterNeuron

IMAGES = 4


class _Formula:
    """Stands for an intervention: the outcome of a set of neuron indices."""

    def __init__(self, outcome: Callable[[frozenset[int]], Outcome], num_outliers: int = 10_000) -> None:
        self._outcome, self.images_run, self.sets = outcome, 0, []
        self.before: Any = SimpleNamespace(num_images=IMAGES)
        self.has_outliers = num_outliers > 0

    def outcome(self, neurons: Sequence[RegisterNeuron]) -> Outcome:
        self.images_run += IMAGES
        self.sets.append(frozenset(neuron.neuron for neuron in neurons))
        return self._outcome(self.sets[-1])


def _ranked(count: int) -> list[RegisterNeuron]:
    return [RegisterNeuron(0, place, 1.0 / (place + 1)) for place in range(count)]


def _needs(needed: set[int], costs: dict[int, float] | None = None) -> Callable[[frozenset[int]], Outcome]:
    """Each needed neuron takes the same share of the outliers away; some neurons cost similarity."""

    def outcome(chosen: frozenset[int]) -> Outcome:
        cost = sum((costs or {}).get(place, 0.0) for place in chosen)
        return Outcome(1 - len(chosen & needed) / len(needed), 1 - cost)

    return outcome


def _select(formula: _Formula, count: int = 40, budget: int = 10**6, **config: Any) -> Selection:
    return select(_ranked(count), formula, budget=budget, config=SelectionConfig(**config))  # type: ignore[arg-type]


def _select_with_others(formula: _Formula, others: _Formula, count: int = 40, budget: int = 10**6) -> Selection:
    return select(_ranked(count), formula, others=others, budget=budget)  # type: ignore[arg-type]


def _places(selection: Selection) -> set[int]:
    return {neuron.neuron for neuron in selection.register_neurons}


@given(needed=st.sets(st.integers(0, 39), min_size=1, max_size=12))
def test_exactly_the_needed_neurons_are_kept_wherever_they_rank(needed):
    found = _select(_Formula(_needs(needed)))
    assert _places(found) == needed
    assert found.outcome == Outcome(0.0, 1.0)
    assert found.within_budget
    assert list(found.register_neurons) == sorted(found.register_neurons, key=lambda neuron: -neuron.score)


def test_no_set_is_tried_twice():
    formula = _Formula(_needs({0, 5, 21}))
    found = _select(formula)
    assert len(formula.sets) == len(set(formula.sets)) < 40
    assert found.images_run == IMAGES * len(formula.sets)


def test_of_two_that_do_the_same_the_stronger_stays():
    either = _Formula(lambda chosen: Outcome(0.0 if chosen & {3, 9} else 1.0, 1.0))
    assert _places(_select(either)) == {3}


def test_a_weak_neuron_beside_a_needed_one_goes_before_a_stronger_one_does():
    needed, either = {0, 7}, {3, 6}
    found = _select(_Formula(lambda chosen: Outcome(float(not (needed <= chosen and chosen & either)), 1.0)))
    assert _places(found) == {0, 3, 7}


def test_the_half_that_is_left_is_pruned_too():
    def outcome(chosen: frozenset[int]) -> Outcome:
        works = 1 in chosen and (0 not in chosen or 2 in chosen) and (3 not in chosen or 5 in chosen)
        return Outcome(float(not works), 1.0)

    assert _places(_select(_Formula(outcome))) == {1, 2}


def test_a_dense_neuron_does_not_stand_in_for_others():
    """Growing would need no more than it, and pruning, weakest first, would rather keep it than those."""
    dense, stands_in_for, needed = 0, {2, 3, 4}, {1, 5}

    def outcome(chosen: frozenset[int]) -> Outcome:
        works = needed <= chosen and (dense in chosen or stands_in_for <= chosen)
        return Outcome(0.0 if works else 1.0, 1.0)

    ranked = _ranked(8)
    assert _places(select(ranked, _Formula(outcome), budget=10**6)) == {dense, *needed}  # type: ignore[arg-type]
    told = select(ranked, _Formula(outcome), budget=10**6, dense={ranked[dense]})  # type: ignore[arg-type]
    assert _places(told) == stands_in_for | needed


def test_a_dense_neuron_that_is_needed_is_found():
    ranked = _ranked(8)
    found = select(ranked, _Formula(_needs({0, 3})), budget=10**6, dense={ranked[0], ranked[1]})  # type: ignore[arg-type]
    assert _places(found) == {0, 3}


def test_neurons_that_do_not_help_leave_the_strongest():
    found = _select(_Formula(lambda chosen: Outcome(1.0, 1.0)))
    assert _places(found) == {0}
    assert found.outcome.outlier_ratio == 1.0


def test_if_outliers_stay_the_set_that_leaves_fewest_is_pruned():
    found = _select(_Formula(lambda chosen: Outcome(1 - 0.2 * len(chosen & {1, 6}), 1.0)))
    assert _places(found) == {1, 6}
    assert found.outcome.outlier_ratio == pytest.approx(0.6)


@pytest.mark.parametrize("budget", [IMAGES, 5 * IMAGES, 12 * IMAGES])
def test_the_budget_bounds_the_search_and_says_so(budget):
    formula = _Formula(_needs({0, 5, 21, 30}))
    found = _select(formula, budget=budget)
    assert not found.within_budget
    assert found.images_run <= budget + IMAGES  # a first try
    assert found.register_neurons


def test_a_costly_neuron_goes_before_the_cheap_ones_that_replace_it():
    """Neuron 0 does alone what 4 and 5 do together, and spoils the feature. With 1, which is not needed, 5 is."""

    def outcome(chosen: frozenset[int]) -> Outcome:
        is_gone = {2, 3} <= chosen and (0 in chosen or {4, 5} <= chosen) and (1 not in chosen or 5 in chosen)
        return Outcome(0.0 if is_gone else 0.6, 0.8 if 0 in chosen else 1.0)

    found = _select(_Formula(outcome), count=6)
    assert _places(found) == {2, 3, 4, 5}
    assert found.outcome == Outcome(0.0, 1.0)


def test_a_costly_neuron_that_nothing_replaces_stays():
    assert _places(_select(_Formula(_needs({0, 1}, {1: 0.05})))) == {0, 1}


def test_the_path_holds_every_step_in_order():
    found = _select(_Formula(_needs({0, 2})), count=8)
    grown = [(step.num_neurons, step.outlier_ratio, step.kept) for step in found.path if step.stage == "grow"]
    assert grown == [(1, 0.5, False), (2, 0.5, False), (4, 0.0, True), (3, 0.0, True)]
    assert [step.stage for step in found.path] == sorted(
        (step.stage for step in found.path), key=["grow", "cost", "prune"].index
    )


def test_neurons_that_only_other_images_need_come_back():
    """Pruned, because the images that choose do not need it (5), or never reached (33)."""
    others = _Formula(_needs({0, 5, 9, 33}))
    found = _select_with_others(_Formula(_needs({0, 9})), others)
    assert _places(found) == {0, 5, 9, 33}
    assert list(found.register_neurons) == sorted(found.register_neurons, key=lambda neuron: -neuron.score)
    assert "elsewhere" in {step.stage for step in found.path}


def test_a_set_that_works_elsewhere_is_tried_there_once():
    others = _Formula(_needs({0, 9}))
    found = _select_with_others(_Formula(_needs({0, 9})), others)
    assert _places(found) == {0, 9}
    assert others.sets == [{0, 9}]


def test_of_two_that_come_back_for_the_same_the_weaker_stays():
    """The stronger one was hardly overlooked: the images that chose had no use for it."""

    def outcome(chosen: frozenset[int]) -> Outcome:
        return Outcome(0.0 if chosen & {1, 4} and {0, 6} <= chosen else 0.5, 1.0)

    assert _places(_select_with_others(_Formula(_needs({0})), _Formula(outcome))) == {0, 4, 6}


def test_what_helps_nowhere_does_not_come_back():
    assert _places(_select_with_others(_Formula(_needs({0})), _Formula(lambda _: Outcome(0.7, 1.0)))) == {0}


def test_images_without_outliers_ask_for_nothing():
    others = _Formula(_needs({7}), num_outliers=0)
    assert _places(_select_with_others(_Formula(_needs({0})), others)) == {0}
    assert others.sets == []


@pytest.mark.parametrize("budget", [12 * IMAGES, 16 * IMAGES])
def test_the_budget_bounds_both_searches_together(budget):
    found = _select_with_others(_Formula(_needs({0, 5})), _Formula(_needs({0, 5, 21, 30})), budget=budget)
    assert not found.within_budget
    assert found.images_run <= budget + IMAGES
    assert _places(found) >= {0, 5}
