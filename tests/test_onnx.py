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
    """Of two blocks: tracing is what costs."""
    stock = case.stock_model(attention="sdpa", num_hidden_layers=2)
    return patched_model(modeling, case, stock, register_neurons=[[1, 5], [0, 3], [1, 0]])


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
def test_a_patched_model_runs_in_onnxruntime_with_batches_of_any_size(case, tmp_path):
    model = _patched(case)
    batch = torch.export.Dim("batch", min=1, max=64)
    given, shapes = inputs(model, images(2)), {"pixel_values": {0: batch}}
    program = torch.onnx.export(model, kwargs=given, dynamo=True, verbose=False, dynamic_shapes=shapes)
    for count in (1, 5):
        _assert_runs_alike(program, tmp_path, model, inputs(model, images(count)))
