"""Ranking: by score, then by place; inside the layers searched; never a zero."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from ttreg_hf.measuring.neuron_scores import rank_neurons
from ttreg_hf.register_neuron import RegisterNeuron

SCORES = torch.tensor([[0.0, 9.0, 1.0], [5.0, 0.0, 5.0], [7.0, 5.0, 0.0], [8.0, 0.0, 2.0]], dtype=torch.float64)


def _places(**settings: int) -> list[tuple[int, int]]:
    return [(neuron.layer, neuron.neuron) for neuron in rank_neurons(SCORES, **settings)]


def test_ranking_is_by_score_then_layer_then_neuron():
    expected = [(0, 1), (3, 0), (2, 0), (1, 0), (1, 2), (2, 1), (3, 2), (0, 2)]
    assert _places(first_layer=0, last_layer=3, top_k=99) == expected


def test_ranking_carries_layer_neuron_and_score():
    assert rank_neurons(SCORES, first_layer=1, last_layer=2, top_k=1) == (RegisterNeuron(2, 0, 7.0),)


def test_first_and_last_layer_are_inclusive():
    assert _places(first_layer=1, last_layer=2, top_k=99) == [(2, 0), (1, 0), (1, 2), (2, 1)]
    assert _places(first_layer=3, last_layer=3, top_k=99) == [(3, 0), (3, 2)]


def test_top_k_is_a_prefix_of_the_whole_ranking():
    whole = _places(first_layer=0, last_layer=3, top_k=99)
    assert all(_places(first_layer=0, last_layer=3, top_k=count) == whole[:count] for count in range(1, 9))


def test_neurons_with_score_zero_are_never_taken():
    assert rank_neurons(torch.zeros(3, 4), first_layer=0, last_layer=2, top_k=5) == ()
    assert len(_places(first_layer=0, last_layer=0, top_k=3)) == 2


@given(st.lists(st.lists(st.integers(0, 3), min_size=4, max_size=4), min_size=1, max_size=5))
def test_ranking_equals_python_sorting(rows):
    expected = sorted(
        (-score, layer, neuron) for layer, row in enumerate(rows) for neuron, score in enumerate(row) if score
    )
    ranked = rank_neurons(torch.tensor(rows).double(), first_layer=0, last_layer=len(rows) - 1, top_k=99)
    assert [(-neuron.score, neuron.layer, neuron.neuron) for neuron in ranked] == expected
