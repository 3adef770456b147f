"""The kinds of models that a calibration without any setting has to tell apart, in every family.

Letters: `Q` quantiles.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.planted_distractors import (
    with_early_neuron,
    with_extreme_content,
    with_heavy_tail,
    with_hot_neurons,
)
from benchmarks.planted_outliers import (
    with_attention_outliers,
    with_cascade,
    with_dense_outliers,
    with_second_population,
    with_used_trained_registers,
)
from benchmarks.planted_positions import (
    with_attention_at_positions,
    with_fixed_positions,
    with_needed_table_spikes,
    with_table_spikes,
)
from benchmarks.planted_truth import KnownModel, graded_model, without_plant
from benchmarks.planted_unseen import with_counted_outliers, with_some_images
from ttreg_hf.known.support import stock_model_class

TRIGGERS = ("bright", "low_information")
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "dinov2": ("dinov2", {}),
    "dinov2-swiglu": ("dinov2", {"use_swiglu_ffn": True}),
    "clip": ("clip_vision_model", {}),
    "dinov2_with_registers": ("dinov2_with_registers", {}),
    "dinov3": ("dinov3_vit", {"num_register_tokens": 4}),
    "dinov3-gated": ("dinov3_vit", {"use_gated_mlp": True, "num_register_tokens": 4}),
    "vit": ("vit", {}),
    "deit": ("deit", {}),
    "siglip": ("siglip_vision_model", {}),
    "siglip2": ("siglip2_vision_model", {}),
    "metaclip_2": ("metaclip_2_vision_model", {}),
    "altclip": ("altclip_vision_model", {}),
    "ijepa": ("ijepa", {}),
    "vit_msn": ("vit_msn", {}),
    "internvl_vision": ("internvl_vision", {"attention_bias": True, "layer_scale_init_value": 1.0}),
    "aimv2": ("aimv2_vision_model", {"mlp_bias": True, "qkv_bias": True, "use_head": False}),
}
_CANNOT_TELL = {"aimv2": ("low_information",)}  # its normalised patches are all alike by this trigger


@dataclass(frozen=True)
class Kind:
    """One kind of model.

    Args:
        make: from family, trigger, seed and config fields to the model and its truth.
        triggers: those that make a difference.
        needs_trained_registers: only families that have them can be of this kind.
        needs_table: only families with a learned position table can.
    """

    make: Callable[..., KnownModel]
    triggers: tuple[str, ...] = TRIGGERS
    needs_trained_registers: bool = False
    needs_table: bool = False


def kind_of(name: str) -> Kind:
    """Of this name, seen or unseen."""
    return KINDS[name] if name in KINDS else UNSEEN_KINDS[name]


def make_known_model(family: str, kind: str, *, trigger: str, seed: int) -> KnownModel:
    """A model of a kind, by the names in `FAMILIES`, `KINDS` and `TRIGGERS`."""
    model_type, fields = FAMILIES[family]
    return kind_of(kind).make(model_type, trigger=trigger, seed=seed, **fields)


def triggers_of(family: str, kind: str) -> tuple[str, ...]:
    """The triggers that make a difference, in a family and a kind of models; none if there is no such model."""
    model_type, _ = FAMILIES[family]
    config_class: Any = stock_model_class(model_type).config_class
    fields = config_class.__dataclass_fields__
    if kind_of(kind).needs_trained_registers and "num_register_tokens" not in fields:
        return ()
    if kind_of(kind).needs_table and {"rope_theta", "rope_parameters"} & fields.keys():
        return ()
    return tuple(trigger for trigger in kind_of(kind).triggers if trigger not in _CANNOT_TELL.get(family, ()))


def _nothing(family: str, **options: Any) -> KnownModel:
    return without_plant(graded_model(family, layout={3: 2}, **options))


def _hot(family: str, *, seed: int, **options: Any) -> KnownModel:
    return with_hot_neurons(graded_model(family, seed=seed, **options), seed=seed)


def _early(family: str, *, seed: int, **options: Any) -> KnownModel:
    return with_early_neuron(graded_model(family, seed=seed, **options), seed=seed)


def _log_normal(family: str, *, seed: int, **options: Any) -> KnownModel:
    return with_heavy_tail(_nothing(family, seed=seed, **options), log_normal(0.4 + 0.1 * (seed % 5)))


def _student(family: str, *, seed: int, **options: Any) -> KnownModel:
    return with_heavy_tail(_nothing(family, seed=seed, **options), student_t((4, 2)[seed % 2]))


def _content(family: str, **options: Any) -> KnownModel:
    return with_extreme_content(_nothing(family, **options))


def _fixed_positions(family: str, *, seed: int, **options: Any) -> KnownModel:
    return with_fixed_positions(_nothing(family, seed=seed, **options), seed=seed)


def _fixed_positions_and_planted(family: str, *, seed: int, **options: Any) -> KnownModel:
    return with_fixed_positions(graded_model(family, seed=seed, **options), seed=seed)


def _table_spikes(family: str, *, seed: int, **options: Any) -> KnownModel:
    known = graded_model(family, seed=seed, layout={3: 2}, **options)
    return without_plant(with_table_spikes(known, seed=seed))


def _table_spikes_and_planted(family: str, *, seed: int, **options: Any) -> KnownModel:
    return with_table_spikes(graded_model(family, seed=seed, **options), seed=seed)


def _needed_table_spikes(family: str, *, seed: int, **options: Any) -> KnownModel:
    known = graded_model(family, seed=seed, layout={3: 2}, **options)
    return without_plant(with_needed_table_spikes(known, seed=seed))


def _attention_at_positions(family: str, *, seed: int, **options: Any) -> KnownModel:
    return with_attention_at_positions(graded_model(family, seed=seed, layout={3: 2}, **options), seed=seed)


def _two_populations(family: str, *, seed: int, **options: Any) -> KnownModel:
    """The later one is five times as large, or half."""
    layout, strengths = {2: 1 + seed % 3}, [40.0, 30.0, 20.0][: 1 + (seed + 1) % 3]
    known = graded_model(family, seed=seed, layout=layout, outlier_fraction=0.03, **options)
    return with_second_population(
        known, strengths, layer=7 + seed % 2, size=(50.0, 4.0)[seed % 2], fraction=0.02, seed=seed
    )


def _cascade(family: str, *, seed: int, **options: Any) -> KnownModel:
    known = graded_model(family, seed=seed, layout={2: 1 + seed % 4}, **options)
    return with_cascade(known, layer=4 + seed % 4, seed=seed)


def _trained_registers(family: str, **options: Any) -> KnownModel:
    return with_used_trained_registers(_nothing(family, **options))


def _trained_registers_and_planted(family: str, **options: Any) -> KnownModel:
    return with_used_trained_registers(graded_model(family, **options))


def _attention(family: str, **options: Any) -> KnownModel:
    return with_attention_outliers(graded_model(family, layout={3: 2}, **options))


def _many_patches(family: str, *, seed: int, **options: Any) -> KnownModel:
    """Three neurons mark two fifths of the patches: things, and no outlier tokens, which are few."""
    known = graded_model(family, seed=seed, layout={2 + seed % 6: 3}, outlier_fraction=0.4, **options)
    marking = tuple(sorted(known.planted_pairs))
    return replace(known, verdicts=("clean", "unresolved"), register_neurons=(), distractors=marking)


def _dense(family: str, *, seed: int, **options: Any) -> KnownModel:
    return with_dense_outliers(graded_model(family, seed=seed, layout={3: 2}, **options), seed=seed)


def _counted(family: str, *, seed: int, **options: Any) -> KnownModel:
    return with_counted_outliers(graded_model(family, seed=seed, layout={3: 1 + seed % 4}, **options))


def _some_images(family: str, *, seed: int, **options: Any) -> KnownModel:
    return with_some_images(graded_model(family, seed=seed, layout={2 + seed % 6: 1 + seed % 5}, **options))


def log_normal(deviation: float) -> Callable[[Tensor], Tensor]:
    """Quantiles of `exp(deviation * z)`, of which the median is 1."""

    def norms(quantiles_Q: Tensor) -> Tensor:
        return (deviation * torch.special.ndtri(quantiles_Q)).exp()

    return norms


def student_t(degrees: int) -> Callable[[Tensor], Tensor]:
    """Quantiles of |t| with 2 or 4 degrees of freedom, which have a closed form; the tail falls with that power."""

    def norms(quantiles_Q: Tensor) -> Tensor:
        both_tails_Q = (0.5 + quantiles_Q / 2) * (0.5 - quantiles_Q / 2) * 4
        if degrees == 2:
            return quantiles_Q * (2 / both_tails_Q).sqrt()
        root_Q = both_tails_Q.sqrt()
        return 2 * ((root_Q.acos() / 3).cos() / root_Q - 1).sqrt()

    return norms


KINDS: Mapping[str, Kind] = {
    "planted": Kind(graded_model),
    "hot neurons": Kind(_hot),
    "early neuron": Kind(_early, ("bright",)),  # it reads brightness, which low-information patches of SigLIP lack
    "cascade": Kind(_cascade),
    "two populations": Kind(_two_populations),
    "nothing": Kind(_nothing, ("bright",)),
    "log-normal": Kind(_log_normal, ("bright",)),
    "student t": Kind(_student, ("bright",)),
    "content": Kind(_content, ("bright",)),
    "trained registers": Kind(_trained_registers, ("bright",), needs_trained_registers=True),
    "planted and trained registers": Kind(_trained_registers_and_planted, needs_trained_registers=True),
    "fixed positions": Kind(_fixed_positions, ("bright",)),
    "planted and fixed positions": Kind(_fixed_positions_and_planted),
    "table spikes": Kind(_table_spikes, ("bright",), needs_table=True),
    "planted and table spikes": Kind(_table_spikes_and_planted, needs_table=True),
    "needed table spikes": Kind(_needed_table_spikes, ("bright",), needs_table=True),
    "attention at fixed positions": Kind(_attention_at_positions, ("bright",), needs_table=True),
    "attention": Kind(_attention, ("bright",)),
    "dense": Kind(_dense, ("bright",)),
    "many patches": Kind(_many_patches, ("bright",)),
}
UNSEEN_KINDS: Mapping[str, Kind] = {
    "counted": Kind(_counted, ("bright",)),
    "some images": Kind(_some_images, ("bright",)),
}
"""Kinds that no constant of the selection was set on, and that it is run on once, when it is finished."""
