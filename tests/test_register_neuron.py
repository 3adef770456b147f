"""A register neuron behaves as the pair `(layer, neuron)`."""

import copy
import dataclasses
import pickle

import numpy as np
import pytest

from ttreg_hf import RegisterNeuron

NEURON = RegisterNeuron(17, 884, 151.6)


def test_it_unpacks_and_is_indexed():
    layer, neuron = NEURON
    assert (layer, neuron, NEURON[0], NEURON[-1], len(NEURON)) == (17, 884, 17, 884, 2)
    assert NEURON[:1] == (17,)
    with pytest.raises(IndexError):
        NEURON[2]
    np.testing.assert_array_equal(np.array([NEURON, (16, 2)]), [[17, 884], [16, 2]])
    assert dict([NEURON]) == {17: 884}  # pyrefly: ignore[no-matching-overload]  # it is a pair by its behaviour


def test_it_equals_its_pair_whatever_the_score():
    assert NEURON == (17, 884)
    assert NEURON == (17, 884)
    assert RegisterNeuron(17, 884) == NEURON
    assert RegisterNeuron(17, 884) == RegisterNeuron(17, 884)  # NaN is not equal to itself
    assert NEURON not in ((17, 885), (884, 17), (17, 884, 151.6), 17, None)


def test_sets_of_pairs_find_it():
    assert {NEURON} == {(17, 884)}
    assert {(17, 884): "first"}.get(NEURON) == "first"
    assert {NEURON} & {RegisterNeuron(17, 884), RegisterNeuron(16, 884)} == {NEURON}


def test_it_sorts_like_its_pair():
    assert sorted([RegisterNeuron(2, 1), (1, 9), RegisterNeuron(1, 3)]) == [(1, 3), (1, 9), (2, 1)]
    assert RegisterNeuron(1, 3) <= (1, 3) < RegisterNeuron(1, 4)


def test_it_keeps_its_score_and_cannot_be_changed():
    for same in (copy.deepcopy(NEURON), pickle.loads(pickle.dumps(NEURON)), dataclasses.replace(NEURON)):
        assert same.score == 151.6
    assert dataclasses.asdict(NEURON) == {"layer": 17, "neuron": 884, "score": 151.6}
    with pytest.raises(dataclasses.FrozenInstanceError):
        NEURON.layer = 3  # pyrefly: ignore[read-only]
