"""What others have published about a checkpoint: its data set, settings, register neurons, and figures to expect.

Data only. Layers are 0-based blocks.
"""

from dataclasses import dataclass, fields
from typing import Any

PUBLISHED = "published, not verified by this project"
SETTINGS_ONLY = "settings only"


@dataclass(frozen=True)
class CalibrationDataset:
    """An image data set on the Hub to calibrate on: ungated, streamable."""

    id: str
    split: str
    image_column: str


@dataclass(frozen=True)
class Recipe:
    """Published settings, named as the fields of `CalibrationConfig`; `None` where nothing was published."""

    num_images: int | None = None
    norm_threshold: float | None = None
    detection_layer: int | None = None
    first_layer: int | None = None
    last_layer: int | None = None
    top_k: int | None = None
    source: str = ""

    def settings(self) -> dict[str, Any]:
        """The settings that were published, as keyword arguments for `CalibrationConfig`."""
        return {name: value for name, value in _given(self).items() if name != "source"}


@dataclass(frozen=True)
class PublishedOptions:
    """Shift options a neuron list was published with; `None` means this project's default."""

    shift_value: str | None = None
    shift_fill: str | None = None
    shift_scale: float | None = None
    num_test_time_registers: int | None = None

    def settings(self) -> dict[str, Any]:
        """The options that were published, as keyword arguments for `add_test_time_registers`."""
        return _given(self)


@dataclass(frozen=True)
class Expectation:
    """What a run on this checkpoint should find, if a published figure holds here too.

    Args:
        quantity: `norm_median`, `norm_max` or `paper_threshold` (mean + 3 standard deviations) of the patch norms
            after block `layer`; `first_outlier_layer`; `rank` of `neuron`, from 1; `score_ratio`, the first score
            over the second; `published_in_top_k` and `published_in_top_2k`, the share of the `k` published register
            neurons among our first `k` or `2k`.
        source: where the figure comes from, and why the bounds are as they are.
        published: the figure itself, if there is one.
        at_least: lowest value that passes.
        at_most: highest value that passes.
        layer: 0-based block.
        neuron: `(layer, neuron)`.
    """

    quantity: str
    source: str
    published: float | None = None
    at_least: float | None = None
    at_most: float | None = None
    layer: int | None = None
    neuron: tuple[int, int] | None = None


@dataclass(frozen=True)
class ReportedFigure:
    """What somebody reports for this checkpoint on a task, in percent: quoted, not measured by this project.

    Args:
        task: as `ttreg evaluate` calls it.
        metric: what is counted.
        dataset: on which data set.
        base: of the base model.
        patched: with a test-time register.
        source: who reports it.
        trained_registers: of the model that was trained with registers, if there is one.
    """

    task: str
    metric: str
    dataset: str
    base: float
    patched: float
    source: str
    trained_registers: float | None = None


@dataclass(frozen=True)
class KnownCheckpoint:
    """One file of `hub_configs/`.

    `neurons_per_layer` is the width of the MLP's down projection's input; `register_neurons` are `(layer, neuron)`
    pairs in the order of the source, or `None`; `family` is transformers' `model_type` of the vision tower.
    """

    base_model: str
    family: str
    num_hidden_layers: int
    neurons_per_layer: int
    dataset: CalibrationDataset
    recipe: Recipe
    register_neurons: tuple[tuple[int, int], ...] | None
    options: PublishedOptions
    source: str
    status: str
    note: str = ""
    expectations: tuple[Expectation, ...] = ()
    reported: tuple[ReportedFigure, ...] = ()


def _given(data: Recipe | PublishedOptions) -> dict[str, Any]:
    values = {field.name: getattr(data, field.name) for field in fields(data)}
    return {name: value for name, value in values.items() if value is not None}
