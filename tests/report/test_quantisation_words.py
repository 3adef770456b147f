"""Sentences about quantised models claim what beats the best baseline, and nothing else."""

import pytest

from ttreg_hf.evaluation.evaluation_result import Evaluation, Figure
from ttreg_hf.evaluation.quantisation import ORDINARY, POOLED, UNQUANTISED
from ttreg_hf.images.data_source import DataSource
from ttreg_hf.report.quantisation_words import quantisation_words

SCHEME = "int8 static, maximum"


def evaluation_of(*figures, task="quantisation"):
    return Evaluation(
        task=task, settings={}, hub_task=None, source=DataSource(), model="m", base_model=None, trained_registers=None,
        num_images=9, num_training_images=9, bad_images=(), image_size=None, confidence=0.95, seed=0,
        figures=tuple(figures), versions={}, created="",
    )  # fmt: skip


def rows(patched, base, zeroed, *, metric=ORDINARY, setting=SCHEME, width=0.0005):
    values = {"base": base, "patched": patched, "zeroed, not moved": zeroed, "trained registers": 0.0}
    return [Figure(metric, setting, row, value, value - width, value + width) for row, value in values.items()]


@pytest.mark.parametrize(
    ("patched", "zeroed", "width", "ending"),
    [
        (0.001, 0.004, 0.0005, "best baseline 0.3 % (base): patching is better."),
        (0.001, 0.0015, 0.0002, "best baseline 0.15 % (zeroed, not moved): patching is better."),
        (0.0025, 0.004, 0.0005, "(base): lower, but the intervals meet, so nothing is shown."),
        (0.002, 0.001, 0.0001, "best baseline 0.1 % (zeroed, not moved): patching does not help here."),
        (0.003, 0.004, 0.0001, "(base): patching does not help here."),
    ],
)
def test_the_best_baseline_decides(patched, zeroed, width, ending):
    words = quantisation_words(evaluation_of(*rows(patched, 0.003, zeroed, width=width)))
    assert len(words) == 2
    assert words[1].startswith(f"{ORDINARY}, {SCHEME}: patched {100 * patched:.3g} %")
    assert words[1].endswith(ending)


def test_without_intervals_nothing_is_claimed():
    figures = [Figure(POOLED, SCHEME, row, value, None, None) for row, value in (("base", 0.3), ("patched", 0.1))]
    assert quantisation_words(evaluation_of(*figures))[1].endswith("so nothing is shown.")


def test_it_says_what_was_simulated_and_nothing_of_other_tasks_or_of_unquantised_models():
    figures = rows(0.1, 0.2, 0.3) + rows(0.1, 0.2, 0.3, setting="int8 dynamic, torchao")
    words = quantisation_words(evaluation_of(*figures, *rows(0.1, 0.0, 0.3, setting=UNQUANTISED)))
    assert words[0] == f"Simulated, by rounding: {SCHEME}. By torchao's kernels: int8 dynamic, torchao."
    assert len(words) == 3
    assert quantisation_words(evaluation_of(*figures, task="knn")) == []


@pytest.mark.parametrize(("constant", "ending"), [(0.001, "constant mode is better."), (0.004, "does not help here.")])
def test_constant_mode_is_held_against_the_baselines_too_and_is_none_itself(constant, ending):
    row = Figure(ORDINARY, SCHEME, "constant mode", constant, constant - 0.0005, constant + 0.0005)
    words = quantisation_words(evaluation_of(*rows(0.0015, 0.003, 0.005), row))
    assert [each.rsplit(": ", 1)[1] for each in words[1:]] == ["patching is better.", words[2].rsplit(": ", 1)[1]]
    assert words[2].endswith(ending)
    assert all("best baseline 0.3 % (base)" in each for each in words[1:])
