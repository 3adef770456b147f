"""Exported checkpoints: programs that give what torch gives, and none that does not."""

import dataclasses
import importlib.util
import json

import pytest
import torch
from families import CASES
from modeling.laws import assert_equal_outputs, patched_model
from transformers import BitImageProcessorPil

import ttreg_hf.publishing.export as export_module
from ttreg_hf import add_test_time_registers, modeling
from ttreg_hf.calibration.config import GateConfig
from ttreg_hf.images.photographs import load_photographs
from ttreg_hf.images.scenes import draw_scenes
from ttreg_hf.known import packages
from ttreg_hf.publishing import export_format, export_program
from ttreg_hf.publishing.export import Folding, FoldingError, ParityError, export_model
from ttreg_hf.publishing.export_format import FORMATS, has_exporters
from ttreg_hf.publishing.export_parity import parity
from ttreg_hf.publishing.export_program import open_program
from ttreg_hf.publishing.folded_neurons import fold_neurons
from ttreg_hf.publishing.named_outputs import named_outputs
from ttreg_hf.publishing.output_check import TOLERANCE

pytestmark = [
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning"),  # torch's own
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of exporters' packages
    pytest.mark.filterwarnings("ignore::UserWarning"),  # likewise
]
INSTALLED = [
    name
    for name, each in FORMATS.items()
    if all(importlib.util.find_spec(module) for module in (*each.packages, *(each.int8_packages or {})))
]
needs_exporters = pytest.mark.skipif(not has_exporters(), reason="transformers older than 5.24 has no exporters")


def processor_of(side):
    crop = {"height": side, "width": side}
    return BitImageProcessorPil(size={"shortest_edge": side}, crop_size=crop, do_center_crop=True)


PROCESSOR = processor_of(112)


@pytest.fixture(scope="module")
def patched():
    known = planted()
    return add_test_time_registers(known.model, known.register_neurons)


def planted():
    from ttreg_hf.planted import planted_model

    pixels = PROCESSOR(images=load_photographs(), return_tensors="pt")["pixel_values"]
    return planted_model(trigger="low_information", images=pixels, num_hidden_layers=4)


def photographs(count):
    return PROCESSOR(images=load_photographs()[:count], return_tensors="pt")["pixel_values"]


@pytest.mark.parametrize("name", FORMATS)
def test_a_program_gives_what_the_patched_model_gives_in_batches_of_any_size(name, patched, tmp_path):
    if name not in INSTALLED:
        pytest.skip(f"the packages of {name} are not installed")
    exported = export_model(patched, tmp_path / "program", export_format=name, processor=PROCESSOR)
    assert exported.parity.num_images == 7
    assert [each.name for each in exported.parity.outputs] == ["last_hidden_state", "pooler_output"]
    assert all(each.max_difference <= TOLERANCE for each in exported.parity.outputs)
    assert exported.size > 0.9 * exported.model_size
    program = open_program(tmp_path / "program", FORMATS[name])
    for count in (1, 7):
        pixels = photographs(count)
        with torch.no_grad():
            expected = patched(pixels)
        found = named_outputs(program(pixel_values=pixels))
        assert_equal_outputs(found, dict(expected), exact=False)
    with torch.no_grad(), patched.disable_test_time_registers():
        base = patched(pixels).last_hidden_state
    assert (found["last_hidden_state"] - base).abs().max() > 0.1  # the shift is in the program
    kept = json.loads((tmp_path / "program" / "parity.json").read_text())
    assert kept["parity"]["outputs"][0]["max_difference"] == exported.parity.outputs[0].max_difference
    assert (tmp_path / "program" / "preprocessor_config.json").is_file()


@needs_exporters
@pytest.mark.parametrize("name", [name for name, each in FORMATS.items() if each.int8_packages is not None])
def test_int8_programs_are_smaller_and_near(name, patched, tmp_path):
    if name not in INSTALLED:
        pytest.skip(f"the packages of {name} are not installed")
    images = draw_scenes(12)
    exported = export_model(
        patched, tmp_path / "program", export_format=name, processor=PROCESSOR, calibration_images=images, num_images=8
    )
    assert exported.num_calibration_images == 8
    assert exported.size < exported.model_size  # though a tiny model is mostly graph
    assert all(1e-5 < each.error < 0.1 for each in exported.parity.outputs)


def test_older_transformers_export_onnx_by_torch(patched, tmp_path, monkeypatch):
    for module in (export_program, export_format):
        monkeypatch.setattr(module, "has_exporters", lambda: False)
    exported = export_model(patched, tmp_path / "program", processor=PROCESSOR)
    assert [each.name for each in exported.parity.outputs] == ["last_hidden_state", "pooler_output"]
    assert all(each.max_difference <= TOLERANCE for each in exported.parity.outputs)
    with pytest.raises(ImportError, match=r"takes transformers 5\.24 or newer.*pip install -U"):
        export_model(patched, tmp_path / "other", export_format="openvino", processor=PROCESSOR)


@needs_exporters
def test_of_a_model_that_reads_text_too_the_tower_is_exported(tmp_path):
    case = next(case for case in CASES if case.name == "clip-CLIPModel")
    model = patched_model(modeling, case, case.stock_model(attention="sdpa"))
    side = model.config.vision_config.image_size
    exported = export_model(model, tmp_path / "program", processor=processor_of(side))
    assert exported.part == "CLIPVisionModel"
    assert all(each.max_difference <= TOLERANCE for each in exported.parity.outputs)


@pytest.mark.parametrize("int8", [False, True])
def test_a_program_that_gives_something_else_is_not_handed_over(int8, patched, tmp_path, monkeypatch):
    """One output of one image is off: by 1 % in float32, by much in int8."""

    def wrong(pixel_values):
        with torch.no_grad():
            outputs = dict(patched(pixel_values))
        outputs["pooler_output"] = outputs["pooler_output"].clone()
        outputs["pooler_output"][0] += outputs["pooler_output"].abs().max() * (10 if int8 else 0.01)
        return outputs

    monkeypatch.setattr(export_module, "write_program", lambda *arguments: None)
    monkeypatch.setattr(export_module, "open_program", lambda *arguments: wrong)
    images = draw_scenes(2) if int8 else None
    with pytest.raises(ParityError, match=r"differs in pooler_output \((difference|1 - cosine) .*Nothing was written"):
        export_model(patched, tmp_path / "program", processor=PROCESSOR, calibration_images=images)
    assert list(tmp_path.iterdir()) == []


def test_nan_and_other_shapes_are_no_parity(patched):
    pixels = photographs(2)
    with torch.no_grad():
        outputs = named_outputs(patched(pixels))
    broken = {**outputs, "pooler_output": outputs["pooler_output"] * float("nan")}
    found = parity(patched, lambda pixel_values: {n: v[: len(pixel_values)] for n, v in broken.items()},
                   {"pixel_values": pixels}, int8=False)  # fmt: skip
    assert [each.split()[0] for each in found.failed] == ["pooler_output"]
    assert dataclasses.replace(found, int8=True).failed
    with pytest.raises(RuntimeError, match="gives the outputs of its model"):
        parity(patched, lambda pixel_values: outputs, {"pixel_values": pixels}, int8=False)


def test_what_cannot_be_exported_is_refused_with_the_remedy(patched, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="`export_format` is one of onnx, openvino, executorch, got 'tflite'"):
        export_model(patched, tmp_path / "p", export_format="tflite", processor=PROCESSOR)
    with pytest.raises(ValueError, match="int8 is offered for onnx, openvino, got executorch"):
        export_model(
            patched, tmp_path / "p", export_format="executorch", processor=PROCESSOR, calibration_images=draw_scenes(1)
        )
    with pytest.raises(TypeError, match="takes a patched model, got Dinov2Model"):
        export_model(planted().model, tmp_path / "p", processor=PROCESSOR)
    with pytest.raises(ValueError, match="image processor is needed"):
        export_model(patched, tmp_path / "p", processor=None)
    own = importlib.util.find_spec
    absent = {"onnxscript", "openvino"}
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None if name in absent else own(name))
    for name, missing in (("onnx", "onnxscript"), ("openvino", "openvino")):
        with pytest.raises(ImportError, match=rf"missing here: {missing}\. Install them with `pip install {missing}`"):
            export_model(patched, tmp_path / "p", export_format=name, processor=PROCESSOR)
    assert list(tmp_path.iterdir()) == []


# folding


@pytest.fixture(scope="module")
def scenes_with_outliers():
    return [*load_photographs(), *draw_scenes(41)]


def zeroed(scenes, *, outlier_fraction=0.05):
    """A planted model whose neurons go nowhere, and the truth about it."""
    from ttreg_hf.planted import planted_model

    pixels = PROCESSOR(images=scenes, return_tensors="pt")["pixel_values"]
    known = planted_model(
        trigger="low_information", images=pixels, outlier_fraction=outlier_fraction, num_hidden_layers=4
    )
    return known, add_test_time_registers(known.model, known.register_neurons, shift_scale=0.0)


def test_folded_neurons_are_gone_on_every_token_and_nothing_is_shifted(scenes_with_outliers):
    _, model = zeroed(scenes_with_outliers)
    folded = fold_neurons(model)
    pixels = photographs(3)

    def zero(module, args):
        acts = args[0].clone()
        acts[..., [neuron for _, neuron in model.config.register_neurons]] = 0
        return (acts,)

    (layer,) = {layer for layer, _ in model.config.register_neurons}
    with torch.no_grad():
        found = folded(pixels).last_hidden_state
        handle = model.encoder.layer[layer].mlp.fc2.register_forward_pre_hook(zero)
        expected = model(pixels).last_hidden_state
        handle.remove()
    assert torch.allclose(found, expected, atol=1e-5)
    assert "NeuronShift" in str(model)
    assert "NeuronShift" not in str(folded)
    before = model.state_dict()
    changed = [name for name, value in folded.state_dict().items() if not torch.equal(value, before[name])]
    assert changed == [f"encoder.layer.{layer}.mlp.fc2.weight"]


def test_a_folded_program_is_measured_and_keeps_the_bounds(scenes_with_outliers, tmp_path):
    _, model = zeroed(scenes_with_outliers)
    wide = GateConfig(max_drift=0.5)
    exported = export_model(
        model, tmp_path / "program", processor=PROCESSOR, fold=Folding(scenes_with_outliers, gate=wide)
    )
    assert [check.name.split()[0] for check in exported.folding] == ["outliers", "drift", "drift"]
    assert all(check.passed for check in exported.folding)
    strict = GateConfig(max_drift=1e-9)
    with pytest.raises(FoldingError, match=r"drift of the pooled feature .* \(allowed 1e-09\).*Nothing was written"):
        export_model(model, tmp_path / "other", processor=PROCESSOR, fold=Folding(scenes_with_outliers, gate=strict))
    with pytest.raises(FoldingError, match="photographs with outliers or more, got"):
        export_model(model, tmp_path / "other", processor=PROCESSOR, fold=Folding(scenes_with_outliers[:4], gate=wide))
    assert not (tmp_path / "other").exists()


def test_neurons_that_go_to_a_register_are_not_folded(patched):
    with pytest.raises(ValueError, match="moves it to a register through the same weights"):
        fold_neurons(patched)
