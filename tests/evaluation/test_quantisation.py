"""Quantised models: what rounding does to a linear layer, which layers are kept, and the errors by scheme and row."""

import dataclasses
import importlib.util

import pytest
import torch
from torch import nn

from ttreg_hf import EvaluationConfig, add_test_time_registers, evaluate
from ttreg_hf.evaluation.quantisation import ORDINARY, OWN_PATCHES, POOLED, UNQUANTISED, QuantisationErrors
from ttreg_hf.evaluation.quantisation_scheme import SCHEMES, LayerRange, available_schemes, scheme_called, worst_layers
from ttreg_hf.evaluation.quantised_linear import (
    RoundedLinear,
    fp8_per_output,
    int4_per_group,
    int8_per_output,
    int8_per_token,
    int8_static,
)
from ttreg_hf.evaluation.rows import KEPT
from ttreg_hf.images.batch import Batch
from ttreg_hf.measuring.linear_ranges import linear_layers, ranges_of
from ttreg_hf.measuring.tower import VisionTower
from ttreg_hf.planted import planted_model
from ttreg_hf.report.evaluation_table import evaluation_table

from .scenes import pixels_of, scenes

CONFIG = EvaluationConfig(resamples=50, batch_size=4)
SIMULATED = [name for name, scheme in SCHEMES.items() if scheme.is_simulated]


@pytest.fixture(scope="module")
def known():
    return planted_model(trigger="low_information", images=pixels_of(scenes(16)), outlier_fraction=0.045)


@pytest.fixture(scope="module")
def patched(known):
    return add_test_time_registers(known.model, known.register_neurons)


@pytest.fixture(scope="module")
def found(patched):
    task = QuantisationErrors(
        schemes=("int8 static, maximum", "int8 dynamic"), also=("knn",), num_calibration_images=6
    )
    return evaluate(patched, scenes(9), train=scenes(8, seed=1), task=task, config=CONFIG)


def rounding_error(rounding, values):
    return (rounding(values) - values).abs()


def test_int8_values_are_whole_steps_of_the_largest_and_what_is_larger_is_cut():
    values = torch.tensor([0.0, 0.49, 0.51, -3.2, 126.6, 127.0, 300.0])
    expected = torch.tensor([0.0, 0.0, 1.0, -3.0, 127.0, 127.0, 127.0])
    assert torch.equal(int8_static(torch.tensor(127.0))(values), expected)


def test_each_output_and_each_token_has_a_scale_of_its_own():
    rows = torch.tensor([[1.0, 0.4, -0.003], [1000.0, 400.0, -3.0]])
    for rounding in (int8_per_output, int8_per_token):
        rounded = rounding(rows)
        assert torch.allclose(rounded[1], 1000 * rounded[0])  # a scale for both would leave nothing of the first
        assert (rounding_error(rounding, rows).amax(1) <= rows.abs().amax(1) / 127 / 2 + 1e-6).all()


def test_fp8_keeps_small_values_that_int8_loses():
    weight = torch.tensor([[448.0, 0.5, 0.0625]])
    assert torch.equal(fp8_per_output(weight), weight)
    assert int8_per_output(weight)[0, 1:].tolist() == [0.0, 0.0]


def test_int4_weights_have_a_scale_for_each_128_inputs():
    weight = torch.randn(3, 300)
    weight[:, 128:256] *= 1000
    rounded = int4_per_group(weight)
    assert rounded.shape == weight.shape
    for group in (slice(0, 128), slice(128, 256), slice(256, 300)):
        step = weight[:, group].abs().amax(1, keepdim=True) / 7
        assert ((rounded - weight)[:, group].abs() <= step / 2 + 1e-5 * step).all()
        assert (rounded[:, group] / step).unique().numel() <= 15 * 3


def test_smoothing_changes_nothing_where_nothing_is_rounded():
    layer = nn.Linear(6, 4)
    smoothing = torch.rand(6) + 0.1
    given = torch.randn(2, 5, 6)
    same = RoundedLinear(layer, lambda values: values, lambda weight: weight, smoothing)
    assert torch.allclose(same(given), layer(given), atol=1e-6)


def test_smoothquant_helps_where_one_channel_is_large():
    torch.manual_seed(0)
    layer, given = nn.Linear(64, 32), torch.randn(200, 64)
    given[:, 7] *= 200
    channels = given.abs().amax(0)
    found = LayerRange(channels, given.abs().flatten().quantile(0.999))
    errors = {}
    for name in ("int8 static, maximum", "SmoothQuant"):
        with torch.no_grad():
            errors[name] = float((SCHEMES[name].quantise(layer, found)(given) - layer(given)).abs().mean())
    assert errors["SmoothQuant"] < 0.3 * errors["int8 static, maximum"]


def ranges_on(tower, pixels):
    return ranges_of(tower, [Batch(pixels, tuple(range(len(pixels))))])


@pytest.mark.parametrize("name", available_schemes())
def test_all_linear_layers_of_the_blocks_are_quantised_and_the_model_stays_as_it_was(name, patched):
    pixels = pixels_of(scenes(4))
    tower = VisionTower.to_measure(patched)
    ranges = ranges_on(tower, pixels)
    kept = worst_layers(ranges)
    before = {key: value.clone() for key, value in tower.model.state_dict().items()}
    with torch.no_grad():
        expected = tower.model(pixels).last_hidden_state
        twins = [scheme_called(name).quantised(tower.model, ranges, names) for names in ((), kept)]
        whole, spared = (twin(pixels).last_hidden_state for twin in twins)
        assert torch.equal(tower.model(pixels).last_hidden_state, expected)
    assert all(torch.equal(before[key], value) for key, value in tower.model.state_dict().items())
    assert 0 < (whole - expected).norm() < 0.7 * expected.norm()
    assert not torch.equal(whole, spared)
    own = VisionTower.of(twins[0]).trunk
    replaced = [type(own.get_submodule(layer).weight) is not nn.Parameter
                or isinstance(own.get_submodule(layer), RoundedLinear) for layer in linear_layers(tower)]  # fmt: skip
    assert len(replaced) == 36
    assert all(replaced)


def test_the_worst_layers_are_a_tenth_with_the_coarsest_steps(patched):
    tower = VisionTower.to_measure(patched)
    ranges = ranges_on(tower, pixels_of(scenes(4)))
    kept = worst_layers(ranges)
    steps = dict(zip(ranges.names, (ranges.input_max_M / ranges.input_quantile_M(0.5)).tolist(), strict=True))
    assert len(kept) == 4
    assert min(steps[name] for name in kept) >= max(step for name, step in steps.items() if name not in kept)


def figures(found, metric, row, setting="int8 static, maximum"):
    (value,) = [each for each in found.figures if (each.metric, each.row, each.setting) == (metric, row, setting)]
    return value


def test_rows_schemes_and_metrics(found, patched):
    assert found.rows == ("base", KEPT, "patched", "zeroed, not moved", "random neurons")
    assert found.num_images == 9
    assert {each.setting for each in found.figures if each.metric == POOLED} == {
        UNQUANTISED, "int8 static, maximum", "int8 dynamic",
    }  # fmt: skip
    for metric in (POOLED, ORDINARY):
        assert abs(figures(found, metric, "base", UNQUANTISED).value) < 1e-6
        assert figures(found, metric, "patched", UNQUANTISED).value > 1e-9  # patching moves the features a little
        assert 0 < figures(found, metric, KEPT).value < figures(found, metric, "base").value
        assert figures(found, metric, "base", "int8 dynamic").value < figures(found, metric, "base").value
        assert figures(found, metric, "patched").low <= figures(found, metric, "patched").value
        assert figures(found, metric, "patched").difference is not None
    assert figures(found, OWN_PATCHES, "patched").value != figures(found, ORDINARY, "patched").value
    assert found.settings["also"] == ["knn"]
    assert figures(found, "top-1", KEPT, UNQUANTISED).value == figures(found, "top-1", "base", UNQUANTISED).value
    assert figures(found, "linear layers above FP8's 448", "base", "").value < 1
    alone = evaluate(patched, scenes(9), train=scenes(8, seed=1), task="knn", config=CONFIG)
    for each in alone.figures:
        assert figures(found, "top-1", each.row, UNQUANTISED).value == each.value
    lines = evaluation_table(found).rows
    label = f"{ORDINARY} (int8 dynamic), exploratory"
    (base_line,) = [line for line in lines if line[0] == label]
    assert base_line[2] == f"{100 * figures(found, ORDINARY, 'base', 'int8 dynamic').value:.3g}"


def test_errors_are_to_the_unquantised_base_on_patches_that_are_ordinary_there(known, patched):
    """By hand, of one image."""
    data, train = scenes(1), scenes(6, seed=1)
    task = QuantisationErrors(
        schemes=("int8 dynamic",), detection_layer=-1, norm_threshold=known.norm_threshold, num_calibration_images=4
    )
    found = evaluate(patched, data, train=train, task=task, config=CONFIG)
    pixels = pixels_of(data)
    tower = VisionTower.to_measure(patched)
    ranges = ranges_on(tower, pixels_of(train[:4]))
    with torch.no_grad():
        quantised = scheme_called("int8 dynamic").quantised(tower.model, ranges)(pixels)
        base = known.model(pixels, output_hidden_states=True)
    ordinary = base.hidden_states[-1][0, 1:].norm(dim=-1) <= known.norm_threshold
    assert 0 < ordinary.sum() < ordinary.numel()
    errors = 1 - torch.cosine_similarity(quantised.last_hidden_state.double(), base.last_hidden_state.double(), dim=-1)
    assert figures(found, ORDINARY, "patched", "int8 dynamic").value == pytest.approx(
        float(errors[0, 1:][ordinary].mean()), rel=1e-3
    )
    pooled = 1 - torch.cosine_similarity(quantised.pooler_output.double(), base.pooler_output.double(), dim=-1)
    assert figures(found, POOLED, "patched", "int8 dynamic").value == pytest.approx(float(pooled), rel=1e-3)


def test_static_scales_come_from_training_images_only(patched, monkeypatch):
    """Brighter report images change no scale: the ranges are those of the training images."""
    seen = []
    monkeypatch.setattr(
        "ttreg_hf.evaluation.quantisation.ranges_of",
        lambda tower, batches, processes: seen.append(found := ranges_of(tower, batches)) or found,
    )
    data, train = scenes(2), scenes(8, seed=1)
    task = QuantisationErrors(schemes=("int8 static, maximum",), num_calibration_images=5)
    evaluate(patched, [{**each, "image": 9 * each["image"]} for each in data], train=train, task=task, config=CONFIG)
    alone = ranges_on(VisionTower.to_measure(add_test_time_registers(patched, [])), pixels_of(train[:5]))
    assert torch.allclose(seen[0].input_max_M, alone.input_max_M, rtol=1e-4)


def test_settings_are_checked(monkeypatch):
    with pytest.raises(ValueError, match=r"`schemes` are of int8 static, maximum, .* got 'int2'"):
        QuantisationErrors(schemes=("int2",))
    with pytest.raises(ValueError, match="`also` names tasks of knn, segmentation, got depth"):
        QuantisationErrors(also=("depth",))
    assert QuantisationErrors(also=("segmentation",)).truths == ("mask",)
    assert QuantisationErrors(also=("segmentation",)).whole_images
    assert dataclasses.replace(QuantisationErrors(), also=("knn",)).truths == ("label",)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert list(available_schemes()) == SIMULATED
    with pytest.raises(ImportError, match=r"runs torchao's kernels\. Install it with `pip install torchao`"):
        scheme_called("int8 dynamic, torchao")


def test_a_model_in_constant_mode_is_quantised_like_any_other(known):
    rows = torch.randn(2, known.model.config.hidden_size, generator=torch.Generator().manual_seed(1))
    options = {"test_time_register_mode": "constant", "constants": rows}
    constant = add_test_time_registers(known.model, known.register_neurons, **options)
    task = QuantisationErrors(schemes=("int8 dynamic",), num_calibration_images=6)
    found = evaluate(constant, scenes(6), train=scenes(6, seed=1), task=task, config=CONFIG)
    of_own = {row: figures(found, OWN_PATCHES, row, "int8 dynamic") for row in ("patched", "zeroed, not moved")}
    assert all(0 < values.value < 0.1 for values in of_own.values())
