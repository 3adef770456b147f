"""Scores: the sums against a loop that anyone can read."""

import pytest
import torch
from torch import Tensor

from ttreg_hf.measuring.neuron_scores import ScoreStatistics

CPU = torch.device("cpu")
B, T, F, L = 7, 9, 5, 3
PLACES = tuple(range(B))


def _batch(seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[dict[int, Tensor], Tensor]:
    """Activations of layers 0 and 2, and outlier tokens: several counts an image, image 3 without any."""
    random = torch.Generator().manual_seed(seed)
    acts = {layer: (5 * torch.randn(B, T, F, generator=random)).to(dtype) for layer in (0, 2)}
    outliers = torch.rand(B, T, generator=random) < 0.4
    outliers[3] = False
    outliers[:3, 1] = True
    return acts, outliers


def _naive_scores(acts: dict[int, Tensor], outliers: Tensor) -> Tensor:
    scores = torch.zeros(L, F, dtype=torch.float64)
    images = [image for image in range(B) if outliers[image].any()]
    for layer, values in acts.items():
        for neuron in range(F):
            means = []
            for image in images:
                tokens = [token for token in range(T) if outliers[image, token]]
                means.append(sum(abs(float(values[image, token, neuron])) for token in tokens) / len(tokens))
            scores[layer, neuron] = sum(means) / len(means)
    return scores


def _add(statistics: ScoreStatistics, acts: dict[int, Tensor], outliers: Tensor, images: slice | list[int]) -> None:
    statistics.add(
        {layer: values[images] for layer, values in acts.items()},
        outliers[images],
        tuple(torch.arange(B)[images].tolist()),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_scores_equal_a_naive_loop(dtype):
    acts, outliers = _batch(dtype=dtype)
    statistics = ScoreStatistics(L, F, CPU)
    statistics.add(acts, outliers, PLACES)
    assert statistics.scores().dtype == torch.float64
    torch.testing.assert_close(statistics.scores(), _naive_scores(acts, outliers), rtol=1e-6, atol=0)


def test_scores_are_zero_in_layers_that_are_not_searched():
    statistics = ScoreStatistics(L, F, CPU)
    statistics.add(*_batch(), PLACES)
    assert (statistics.scores()[1] == 0).all()
    assert (statistics.scores()[[0, 2]] > 0).all()


def test_scores_of_a_narrower_layer_leave_the_rest_zero():
    acts, outliers = _batch()
    statistics = ScoreStatistics(L, F, CPU)
    statistics.add({0: acts[0][..., :3]}, outliers, PLACES)
    assert (statistics.scores()[0] > 0).tolist() == [True, True, True, False, False]


def test_images_without_outliers_count_for_nothing():
    acts, outliers = _batch()
    alone, with_others = ScoreStatistics(L, F, CPU), ScoreStatistics(L, F, CPU)
    _add(alone, acts, outliers, [0, 1, 2])
    _add(with_others, acts, outliers, [0, 1, 2, 3])
    assert alone.images_with_outliers == with_others.images_with_outliers == 3
    assert torch.equal(alone.scores(), with_others.scores())


def test_scores_are_zero_and_finite_without_any_outlier():
    acts, outliers = _batch()
    statistics = ScoreStatistics(L, F, CPU)
    statistics.add(acts, torch.zeros_like(outliers), PLACES)
    assert torch.equal(statistics.scores(), torch.zeros(L, F, dtype=torch.float64))
    assert statistics.images_with_outliers == 0


def test_an_image_counts_once_however_many_outliers_it_has():
    """Mean over the image's outliers first, then over images: (1 + 1 + 1) / 3 and 9 give 5, not 3."""
    acts = torch.tensor([[1.0, 1.0, 1.0, 50.0], [9.0, 50.0, 50.0, 50.0]]).unsqueeze(-1)
    outliers = torch.tensor([[True, True, True, False], [True, False, False, False]])
    statistics = ScoreStatistics(1, 1, CPU)
    statistics.add({0: acts}, outliers, (0, 1))
    assert statistics.scores().item() == 5.0


def test_scores_use_the_magnitude():
    acts = torch.tensor([[[-4.0], [2.0]]])
    statistics = ScoreStatistics(1, 1, CPU)
    statistics.add({0: acts}, torch.tensor([[True, True]]), (0,))
    assert statistics.scores().item() == 3.0


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1], [1, 2, 0]])
def test_merging_parts_in_any_order_equals_one_pass(order):
    acts, outliers = _batch()
    whole, merged = ScoreStatistics(L, F, CPU), ScoreStatistics(L, F, CPU)
    _add(whole, acts, outliers, slice(None))
    parts = [slice(0, 1), slice(1, 4), slice(4, 7)]
    for place in order:
        part = ScoreStatistics(L, F, CPU)
        _add(part, acts, outliers, parts[place])
        merged.merge(part)
    torch.testing.assert_close(merged.scores(), whole.scores(), rtol=1e-12, atol=0)
    assert merged.images_with_outliers == whole.images_with_outliers
    assert merged.images_seen == whole.images_seen == B


@pytest.mark.parametrize("batches", [[[i] for i in range(B)], [[6, 5, 4, 3], [2, 1, 0]], [[3], [0, 2, 4, 6], [1, 5]]])
def test_batch_size_and_order_do_not_matter(batches):
    acts, outliers = _batch()
    whole, batched = ScoreStatistics(L, F, CPU), ScoreStatistics(L, F, CPU)
    _add(whole, acts, outliers, slice(None))
    for images in batches:
        _add(batched, acts, outliers, images)
    torch.testing.assert_close(batched.scores(), whole.scores(), rtol=1e-12, atol=0)


def test_max_active_fraction_leaves_out_what_is_active_on_more_tokens():
    """Four tokens, the first an outlier. Neurons are active on 1, 2 and 3 of them; 0.5 counts as active, -9 does not.

    Half of the tokens may be active: the third neuron scores 0 in image 0. In image 1 none is active too often, so the
    scores are (8 + 2) / 2, (6 + 2) / 2 and (0 + 2) / 2.
    """
    image_0 = torch.tensor([[8.0, 6.0, 4.0], [-9.0, 0.5, 0.5], [0.49, 0.0, 7.0], [0.0, 0.0, 0.0]])
    image_1 = torch.tensor([[2.0, 2.0, 2.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    outliers = torch.tensor([[True, False, False, False]] * 2)
    statistics = ScoreStatistics(1, 3, CPU)
    statistics.add({0: torch.stack([image_0, image_1])}, outliers, (0, 1), 0.5)
    assert statistics.scores().tolist() == [[5.0, 4.0, 1.0]]


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0.0), (0.24, 0.0), (0.25, 8.0), (1.0, 8.0)])
def test_max_active_fraction_is_a_share_that_is_allowed(share, expected):
    acts = torch.tensor([[[8.0], [0.0], [0.0], [0.0]]])
    statistics = ScoreStatistics(1, 1, CPU)
    statistics.add({0: acts}, torch.tensor([[True, False, False, False]]), (0,), share)
    assert statistics.scores().item() == expected
