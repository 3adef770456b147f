"""From scores to a ranked list of neurons."""

from torch import Tensor

from ttreg_hf.register_neuron import RegisterNeuron


def rank_neurons(scores_LF: Tensor, *, first_layer: int, last_layer: int, top_k: int) -> tuple[RegisterNeuron, ...]:
    """The best neurons of the layers searched: by score, highest first, then by layer and neuron.

    Args:
        scores_LF: one row a layer, from layer 0.
        first_layer: first layer to take neurons from, inclusive.
        last_layer: last layer, inclusive.
        top_k: how many at most. Neurons with score 0 are never taken.
    """
    searched = scores_LF[first_layer : last_layer + 1]
    values, places = searched.flatten().sort(descending=True, stable=True)
    width = searched.shape[1]
    return tuple(
        RegisterNeuron(first_layer + place // width, place % width, value)
        for value, place in zip(values[:top_k].tolist(), places[:top_k].tolist(), strict=True)
        if value > 0
    )
