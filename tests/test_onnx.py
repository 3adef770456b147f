"""Patched models as ONNX: onnxruntime computes what torch computes."""

import onnxruntime
import pytest
import torch
from families import BARE_CASES, images, inputs
from modeling.laws import assert_equal_outputs, patched_model

from ttreg_hf import modeling

# torch's exporter asks for a name that torch itself has replaced
pytestmark = pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")


def _patched(case):
    return patched_model(modeling, case, case.stock_model(attention="sdpa"))


def _export(model, given, **options):
    return torch.onnx.export(model, kwargs=given, dynamo=True, verbose=False, **options)


def _assert_runs_alike(program, folder, model, given):
    program.save(folder / "model.onnx")
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    read = {each.name for each in session.get_inputs()}  # a mask of ones alone may have gone
    found = session.run(None, {name: tensor.numpy() for name, tensor in given.items() if name in read})
    with torch.no_grad():
        expected = dict(model(**given))
    assert_equal_outputs(dict(zip(expected, map(torch.from_numpy, found), strict=True)), expected, exact=False)


# one family of each sort: CLS, gated MLP, no prefix, rotary positions with trained registers, RMSNorm
FAMILIES = ("clip", "dinov2-swiglu", "siglip", "dinov3", "aimv2")
SORTS = [case for case in BARE_CASES if case.family.name in FAMILIES]


def test_every_sort_is_exported():
    assert len(SORTS) == len(FAMILIES)


@pytest.mark.parametrize("case", SORTS, ids=lambda case: case.family.name)
def test_a_patched_model_runs_in_onnxruntime_wherever_the_stock_model_can_be_exported(case, tmp_path):
    model = _patched(case)
    given = inputs(model, images())
    try:
        program = _export(model, given)
    except torch.onnx.errors.OnnxExporterError as error:
        with pytest.raises(type(error)):
            _export(case.stock_model(attention="sdpa"), given)
        pytest.skip(f"the stock model cannot be exported either: {error}")
    _assert_runs_alike(program, tmp_path, model, given)


@pytest.mark.parametrize(
    "case", [case for case in BARE_CASES if case.family.name in ("dinov2", "clip")], ids=lambda case: case.family.name
)
def test_an_exported_model_takes_batches_of_any_size(case, tmp_path):
    model = _patched(case)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = _export(model, inputs(model, images(2)), dynamic_shapes={"pixel_values": {0: batch}})
    for count in (1, 5):
        _assert_runs_alike(program, tmp_path, model, inputs(model, images(count)))
