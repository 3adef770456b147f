"""The patched twin: the same to the bit as a new twin, and blocks before the first register neuron run once."""

import dataclasses
import functools
from typing import Any

import pytest
import torch
from families import BARE_CASES, NUM_PATCHES, Case, images

from ttreg_hf.images.batches import Batch
from ttreg_hf.measuring.batch_limit import BatchLimit
from ttreg_hf.measuring.intervention import Intervention
from ttreg_hf.measuring.measurement import Measurement, measure
from ttreg_hf.measuring.outlier_rule import OutlierRule
from ttreg_hf.measuring.patched_twin import PatchedTwin
from ttreg_hf.measuring.tower import VisionTower
from ttreg_hf.register_neuron import RegisterNeuron

SETS = [[(2, 1)], [(1, 4), (2, 0)], [(0, 2)], [(2, 3)], [(1, 4)]]  # layer, neuron


def _batches() -> list[Batch]:
    return [Batch(part, tuple(range(len(part)))) for part in images(5).split(2)]


def _neurons(pairs: list[tuple[int, int]]) -> list[RegisterNeuron]:
    return [RegisterNeuron(layer, neuron, 1.0) for layer, neuron in pairs]


def _assert_same(one: Measurement, other: Measurement) -> None:
    assert torch.equal(one.features_BD, other.features_BD)
    assert torch.equal(torch.stack(one.norms_BN), torch.stack(other.norms_BN))
    assert torch.equal(one.norms.max_L, other.norms.max_L)
    assert one.register_norm == other.register_norm


@pytest.mark.parametrize("options", [{}, {"num_test_time_registers": 2, "shift_fill": "mean"}])
@pytest.mark.parametrize(
    ("device", "dtype"),
    [
        ("cpu", torch.float32),
        pytest.param("cuda", torch.bfloat16, marks=pytest.mark.gpu),
    ],
    ids=["cpu", "cuda"],
)
def test_it_gives_what_a_new_twin_gives(bare_case: Case, device: str, dtype: torch.dtype, options: dict[str, Any]):
    model: Any = bare_case.stock_model(attention="sdpa")
    batches = [dataclasses.replace(batch, pixel_values=batch.pixel_values.to(device, dtype)) for batch in _batches()]
    intervention = Intervention(VisionTower.of(model.to(device, dtype)), batches, OutlierRule(1, 1.0), options=options)
    found = []
    for pairs in SETS:
        twin = intervention.patched(_neurons(pairs))
        alone = measure(twin, intervention.batches, intervention.rule, base=intervention.before)
        found.append(intervention.after(_neurons(pairs)))
        _assert_same(found[-1], alone)
    assert not torch.equal(found[0].features_BD, found[1].features_BD)  # the neurons do something


@pytest.fixture
def clip_intervention() -> Intervention:
    case = next(case for case in BARE_CASES if case.name == "clip-CLIPVisionModel")
    return Intervention(VisionTower.of(case.stock_model()), _batches(), OutlierRule(1, 1.0))


def _images_run(intervention: Intervention, **options: int) -> list[list[int]]:
    """For each set of neurons, how many images went through each block."""
    patched, counts = PatchedTwin(intervention.tower, {}, **options), []
    for pairs in SETS:
        twin, runs = patched.moving(_neurons(pairs), shift_value="per_neuron"), [0, 0, 0]
        hooks = [
            projection.register_forward_pre_hook(functools.partial(_count, runs, layer))
            for layer, projection in enumerate(twin.down_projections)  # a block that does not run does not ask its own
        ]
        measure(twin, intervention.batches, intervention.rule)
        for hook in hooks:
            hook.remove()
        counts.append(runs)
    return counts


def _count(runs: list[int], layer: int, module: Any, args: Any) -> None:
    runs[layer] += len(args[0])


def test_blocks_before_the_first_register_neuron_run_once(clip_intervention: Intervention):
    assert _images_run(clip_intervention) == [[5, 5, 5], [0, 5, 5], [5, 5, 5], [0, 0, 5], [0, 5, 5]]


def test_what_does_not_fit_is_run_again(clip_intervention: Intervention):
    tokens, channels = 1 + 1 + NUM_PATCHES, 16
    one_block_of_two_images = 2 * tokens * channels * torch.float32.itemsize
    runs = _images_run(clip_intervention, most_bytes=one_block_of_two_images)
    assert runs == [[5, 5, 5], [3, 5, 5], [5, 5, 5], [3, 5, 5], [3, 5, 5]]


def test_where_memory_runs_out_nothing_is_kept_and_the_result_is_the_same(clip_intervention: Intervention):
    intervention, last, limit = clip_intervention, _neurons(SETS[0]), BatchLimit()
    expected = intervention.after(last)
    twin, runs = PatchedTwin(intervention.tower, {}).moving(last, shift_value="per_neuron"), [0]
    first, _, third = twin.down_projections
    first.register_forward_pre_hook(functools.partial(_count, runs, 0))
    third.register_forward_pre_hook(_two_do_not_fit)
    for images_run in (2 + 5, 2 + 5 + 5):  # two in vain, and then one by one
        found = measure(twin, intervention.batches, intervention.rule, limit=limit)
        torch.testing.assert_close(found.features_BD, expected.features_BD)
        assert runs == [images_run]


def _two_do_not_fit(module: Any, args: Any) -> None:
    if len(args[0]) > 1:
        raise torch.cuda.OutOfMemoryError("two images do not fit")
