"""Which form of the shift runs, and that the Triton kernel gives what plain PyTorch gives, bit for bit."""

import sys
import types

import pytest
import torch
from families import BARE_CASES, images
from modeling.laws import assert_equal_outputs, flat_tensors, forward, patched_model, run
from torch.profiler import ProfilerActivity, profile

from ttreg_hf import modeling
from ttreg_hf.kernels import use_triton
from ttreg_hf.modeling.registers import (
    SHIFT_FILLS,
    SHIFT_VALUES,
    NeuronShift,
    TokenLayout,
    shift_neurons,
)

BITS = {torch.float16: torch.int16, torch.bfloat16: torch.int16, torch.float32: torch.int32}
CASE = BARE_CASES[0]


def _model(**options):
    return patched_model(modeling, CASE, CASE.stock_model(), **options)


def test_without_triton_it_is_refused_and_the_plain_form_stays(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "ttreg_hf.kernels.shift_kernel", raising=False)
    model = _model()
    with pytest.raises(ValueError, match=r"needs Triton 3\.3 or newer, which cannot be imported here\. Install it"):
        use_triton(model)
    assert model.registers.shift is shift_neurons


def test_an_older_triton_is_refused_too(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton.language", types.ModuleType("triton.language"))
    monkeypatch.setitem(sys.modules, "triton", older := types.ModuleType("triton"))
    older.__version__, older.language = "3.2.0", sys.modules["triton.language"]
    monkeypatch.delitem(sys.modules, "ttreg_hf.kernels.shift_kernel", raising=False)
    with pytest.raises(ValueError, match=r"needs Triton 3\.3 or newer") as refused:
        use_triton(_model())
    assert str(refused.value.__cause__) == "needs Triton 3.3 or newer, got 3.2.0"


def test_a_model_that_is_not_patched_is_refused():
    with pytest.raises(ValueError, match=r"of patched models, got a Dinov2Model\. Patch it with `add_test_time_reg"):
        use_triton(CASE.stock_model())


def test_the_form_that_runs_is_printed_and_can_be_taken_back():
    model = _model()
    assert "by=shift_neurons)" in repr(model)

    def other_form(acts, *args, **options):
        return shift_neurons(acts, *args, **options)

    model.registers.shift = other_form
    assert "by=other_form)" in repr(model)
    use_triton(model, False)
    assert "by=shift_neurons)" in repr(model)


def test_the_shift_writes_in_place_only_where_no_gradient_is_recorded():
    model, seen = _model(), []

    def recording(acts, *args, in_place, **options):
        seen.append(in_place)
        return shift_neurons(acts, *args, in_place=in_place, **options)

    model.registers.shift = recording
    run(model, images())
    assert seen
    assert all(seen)
    seen.clear()
    forward(model, images())
    assert seen
    assert not any(seen)


def test_the_index_that_a_shift_reads_is_made_once_a_device_and_is_not_state():
    model, stock = _model(), CASE.stock_model()
    shifts = [module for module in model.modules() if isinstance(module, NeuronShift)]
    run(model, images())
    first = [dict(shift._made) for shift in shifts]
    run(model, images(5))
    assert [list(map(id, shift._made.values())) for shift in shifts] == [
        list(map(id, each.values())) for each in first
    ]
    run(model.double(), images().double())
    run(model, torch.randn(1, 3, 3 * 14, 2 * 14).double())  # another number of tokens
    assert [len(shift._made) for shift in shifts] == [1] * len(shifts)
    assert list(model.state_dict()) == list(stock.state_dict())
    assert [name for name, _ in model.named_buffers()] == [name for name, _ in stock.named_buffers()]


def test_a_shift_is_eight_kernels_and_five_views():
    """In eager mode and for a few images, what a layer costs is the number of calls."""
    acts, layout = torch.randn(2, 6, 8), TokenLayout(1, 1, (4, 4))
    index = torch.tensor([1, 5])
    settings = {"shift_value": "per_neuron", "shift_fill": "zero", "shift_scale": 1.0}
    with torch.inference_mode(), profile(activities=[ProfilerActivity.CPU]) as profiled:
        shift_neurons(acts, index, layout, settings, None, in_place=True)
    called = [event.name.removeprefix("aten::") for event in profiled.events() if event.cpu_parent is None]
    kernels = ["index_select", "abs", "fill_", "argmax", "gather", "zeros_like", "cat", "index_copy_"]
    views = [name for name in called if name not in kernels]
    assert [name for name in called if name in kernels] == kernels
    assert views == ["slice", "squeeze", "tensor_split", "unsqueeze", "expand_as"]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", BITS, ids=str)
@pytest.mark.parametrize("value", SHIFT_VALUES)
@pytest.mark.parametrize("fill", SHIFT_FILLS)
@pytest.mark.parametrize("scale", [1.0, 0.0, 0.3])
@pytest.mark.parametrize(("prefix", "registers", "patches"), [(1, 1, 256), (0, 2, 9), (5, 1, 1369)])
def test_the_kernel_is_the_plain_form_bit_for_bit(dtype, value, fill, scale, prefix, registers, patches):
    from ttreg_hf.kernels.shift_kernel import shift_neurons_with_triton

    tokens = prefix + registers + patches
    random = torch.Generator().manual_seed(0)
    # few values, so that there are ties of either sign; wider than it has to be, so that it is a view
    wide = (3 * torch.randn(3, tokens, 70, generator=random)).round().div(2)
    wide[0, -1, 7], wide[1, 0, 7] = float("nan"), float("-inf")
    seen = torch.rand(3, tokens, generator=random) < 0.7
    seen[0, -1] = True
    layout = TokenLayout(prefix, registers, (14, 14))
    for seen_BT in (None, seen.cuda()):
        acts = wide.to("cuda", dtype)[:, :, 6:]
        index = torch.tensor([1, 63, 0, 17, 5], device="cuda")
        settings = {"shift_value": value, "shift_fill": fill, "shift_scale": scale}
        expected = shift_neurons(acts.clone(), index, layout, settings, seen_BT, in_place=True)
        found = shift_neurons_with_triton(acts, index, layout, settings, seen_BT, in_place=True)
        assert found is acts
        both = expected.isnan() & found.isnan()  # of a NaN the bits do not matter
        same = expected.contiguous().view(BITS[dtype]) == found.contiguous().view(BITS[dtype])
        assert (same | both).all()


@pytest.mark.gpu
def test_a_model_with_the_kernel_gives_equal_outputs_also_from_a_cuda_graph():
    plain, fused = (_model().cuda() for _ in range(2))
    use_triton(fused)
    assert "by=shift_neurons_with_triton)" in repr(fused)
    batch = images().cuda()
    assert_equal_outputs(run(fused, batch), run(plain, batch))
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.cuda.stream(stream), torch.no_grad():
        fused(batch)
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph), torch.no_grad():
        output = fused(batch)
    batch.copy_(images(seed=1))
    graph.replay()
    with torch.no_grad():
        assert_equal_outputs(output, plain(batch))


@pytest.mark.gpu
def test_gradients_do_not_meet_the_kernel():
    plain, fused = (_model().cuda().train() for _ in range(2))
    use_triton(fused)
    for model in (plain, fused):
        forward(model, images().cuda()).last_hidden_state.square().sum().backward()
    ours, theirs = ({name: each.grad for name, each in model.named_parameters()} for model in (fused, plain))
    assert_equal_outputs(dict(flat_tensors(ours)), dict(flat_tensors(theirs)))
