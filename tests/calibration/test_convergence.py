"""How many images are enough: the curve, the two halves, and when a run may stop."""

import itertools
from typing import Any

import pytest
import torch
from brief import calibrate_briefly
from families import BARE_CASES, images

from ttreg_hf.calibration.config import CalibrationConfig, RunConfig
from ttreg_hf.calibration.convergence import Convergence, convergence, is_stable, milestones
from ttreg_hf.measuring.neuron_scores import ScoreStatistics
from ttreg_hf.planted import PlantedModel, planted_model, synthetic_images

from .test_calibration_run import _explicit


@pytest.mark.parametrize(
    ("num_images", "expected"),
    [(1, ()), (16, ()), (17, (16,)), (64, (16, 32)), (500, (16, 32, 64, 128, 256))],
)
def test_milestones_double_from_16_and_end_before_the_last_image(num_images, expected):
    assert milestones(num_images) == expected


def _statistics(*images: tuple[int, tuple[float, ...]]) -> ScoreStatistics:
    """One layer; `(place, activations of its neurons)` of each image, on its one token, an outlier."""
    statistics = ScoreStatistics(1, len(images[0][1]), torch.device("cpu"))
    for place, acts in images:
        statistics.add({0: torch.tensor(acts)[None, None]}, torch.tensor([[True]]), (place,))
    return statistics


def test_halves_are_the_even_and_the_odd_places():
    even, odd = _statistics((0, (1.0, 5.0)), (1, (2.0, 0.0)), (2, (3.0, 1.0))).half_scores()
    assert even.tolist() == [[2.0, 3.0]]
    assert odd.tolist() == [[2.0, 0.0]]


def test_halves_of_places_in_any_batch_are_the_same():
    images = [(place, tuple(acts)) for place, acts in enumerate(torch.rand(6, 3).tolist())]
    expected = _statistics(*images).half_scores()
    for order in itertools.islice(itertools.permutations(images), 0, 720, 97):
        torch.testing.assert_close(_statistics(*order).half_scores(), expected, rtol=1e-12, atol=0)


def test_the_curve_is_worked_out_by_hand():
    """The best two of four. Early: 0 and 1; in the end 0 and 2. Halves: {0, 1} and {0, 1}, then {0, 2} and {2, 3}."""
    early = _statistics((0, (9.0, 8.0, 0.0, 0.0)), (1, (9.0, 8.0, 0.0, 0.0)))
    final = _statistics((0, (9.0, 0.0, 8.0, 0.0)), (1, (0.0, 0.0, 8.0, 7.0)))
    found = convergence({16: early, 20: final}, first_layer=0, last_layer=0, top_k=2)
    assert found == Convergence(2, (16, 20), (1 / 2, 1.0), (1.0, 1 / 2))


def test_a_curve_without_outliers_is_zero():
    empty = ScoreStatistics(1, 4, torch.device("cpu"))
    assert convergence({7: empty}, first_layer=0, last_layer=0, top_k=2) == Convergence(2, (7,), (0.0,), (0.0,))


@pytest.mark.parametrize(
    ("halves", "expected"), [((1.0,), False), ((0.9, 1.0), False), ((0.2, 0.95, 0.96), True), ((1.0, 0.9), False)]
)
def test_a_run_is_stable_when_its_halves_agree_twice_in_a_row(halves, expected):
    places = tuple(16 << place for place in range(len(halves)))
    assert is_stable(Convergence(5, places, (1.0,) * len(halves), halves)) == expected


@pytest.fixture(scope="module")
def planted() -> PlantedModel:
    return planted_model()


def _calibrate(planted: PlantedModel, count: int, *, config: dict[str, Any] | None = None, **options: Any) -> Any:
    fields = {"num_images": count, "batch_size": 16, "first_layer": 0, "top_k": 2, **(config or {})}
    return calibrate_briefly(
        planted.model, synthetic_images(72, seed=5), config=_explicit(planted, **fields), **options
    )


def test_the_curve_of_a_run_is_recorded(planted):
    """A planted model needs 16 images at most: all its neurons are found by then, in both halves."""
    found = _calibrate(planted, 72).convergence
    assert found == Convergence(2, (16, 32, 64, 72), (1.0,) * 4, (1.0,) * 4)


def test_a_point_of_the_curve_is_what_a_run_of_so_many_images_finds(planted):
    found, short = (_calibrate(planted, count, config={"top_k": 40}) for count in (72, 32))
    best = [{(n.layer, n.neuron) for n in result.register_neurons} for result in (found, short)]
    place = found.convergence.num_images.index(32)
    assert found.convergence.overlap_with_final[place] == len(best[0] & best[1]) / 40
    assert found.convergence.overlap_of_halves[place] == short.convergence.overlap_of_halves[-1]


def test_the_curve_of_a_short_stream_ends_with_its_images(planted):
    assert _calibrate(planted, 500, config={"batch_size": 7}).convergence.num_images == (16, 32, 64, 72)
    short = calibrate_briefly(planted.model, synthetic_images(9, seed=5), config=_explicit(planted, num_images=500))
    assert short.convergence.num_images == (9,)


def test_the_curve_counts_images_that_scored(planted):
    """An automatic `top_k` holds images out."""
    found = _calibrate(planted, 40, config={"top_k": None})
    assert found.convergence.num_images[-1] == found.provenance.images_scored < 40
    assert found.convergence.num_images[0] <= 16
    assert found.convergence.top_k == 50


def test_a_short_stream_is_said_to_be_one(planted):
    said: list[str] = []
    _calibrate(planted, 500, say=said.append)
    assert said == ["asked for 500 images, the data set had 72"]
    _calibrate(planted, 72, say=said.append)
    assert len(said) == 1


def test_early_stop_ends_at_the_first_stable_place(planted):
    said: list[str] = []
    found = _calibrate(planted, 72, run=RunConfig(early_stop=True), say=said.append)
    assert found.provenance.images_scored == 32
    assert found.convergence.num_images == (16, 32)
    assert found.verdict == "fixed"
    assert said == ["stopped early after 32 images: two halves of them agree on the best neurons"]
    assert torch.equal(found.scores, _calibrate(planted, 32).scores)


def test_early_stop_goes_on_while_the_halves_differ():
    """A random model on noise: which neurons are best is chance."""
    config = CalibrationConfig(num_images=72, norm_threshold=1e-6, last_layer=2, top_k=30, batch_size=16)
    found = calibrate_briefly(BARE_CASES[0].stock_model(), images(72), config=config, run=RunConfig(early_stop=True))
    assert found.provenance.images_scored == 72
    assert min(found.convergence.overlap_of_halves[:2]) < 0.95
