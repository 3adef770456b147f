"""The page: the fog explained in five steps, and the neuron switch. Everything that it shows is inside it."""

from collections import Counter
from dataclasses import dataclass

from ttreg_hf.pictures.numbers import counted, short_number
from ttreg_hf.report.neuron_switch import NeuronSwitch
from ttreg_hf.report.page import environment
from ttreg_hf.report.switch_data import switch_data

_MOST_LISTED = 12


@dataclass(frozen=True, eq=False)
class Shown:
    """What the page is about.

    Args:
        title: name of the model.
        switch: recorded, of every block.
        register_neurons: `(layer, neuron)`, strongest first; empty where none are known.
        num_neurons: of the whole vision tower.
        norm_threshold: at the detection block; `None`: not known.
    """

    title: str
    switch: NeuronSwitch
    register_neurons: tuple[tuple[int, ...], ...]
    num_neurons: int
    norm_threshold: float | None


def render_demo(shown: Shown) -> str:
    """The page as HTML."""
    neurons, threshold = shown.register_neurons, shown.norm_threshold
    layers = sorted(Counter(layer for layer, _ in neurons).items())
    listed = ", ".join(f"{layer}/{neuron}" for layer, neuron in neurons[:_MOST_LISTED])
    return (
        environment("ttreg_hf.demonstration")
        .get_template("demo.html")
        .render(
            title=shown.title,
            switch=shown.switch,
            switch_data=switch_data(shown.switch, threshold),
            neurons=counted(len(neurons), "register neuron"),
            share=f"{100 * len(neurons) / shown.num_neurons:.2g} %",
            of_all=f"{shown.num_neurons:,}",
            has_fog=threshold is None or _has_outliers(shown.switch, threshold),
            layers=[layer for layer, _ in layers],
            in_layers=", ".join(f"{count} in layer {layer}" for layer, count in layers),
            listed=listed + (" and more" if len(neurons) > _MOST_LISTED else ""),
            threshold=None if threshold is None else short_number(threshold),
        )
    )


def _has_outliers(switch: NeuronSwitch, norm_threshold: float) -> bool:
    """Whether the base model has any in one of the photographs."""
    row = switch.norm_layers.index(switch.detection_layer)
    return any(bool((photograph.norms_SLhw[0, row] > norm_threshold).any()) for photograph in switch.photographs)
