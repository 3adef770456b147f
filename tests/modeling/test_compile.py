"""`torch.compile(fullgraph=True)` gives what the eager model gives."""

from collections.abc import Iterator

import pytest
import torch
from families import BARE_CASES, CASES, Case, images

from modeling.laws import assert_equal_outputs, forward, patched_model
from ttreg_hf import modeling
from ttreg_hf.applying import add_test_time_registers

# tracing is what costs: two blocks, and hidden states only where they matter
NEURONS = [[1, 5], [0, 3], [1, 0]]
CLASSIFIER = next(case for case in CASES if case.stock_class.__name__ == "Dinov2ForImageClassification")
BACKBONE = next(case for case in CASES if case.is_backbone)
# torch.utils.mkldnn, that inductor imports, still uses `torch.jit.script_method`
INDUCTOR = pytest.param("inductor", marks=pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"))


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def _stock(case: Case):
    fields = {"out_features": ["stem", "stage2"]} if case.is_backbone else {}
    return case.stock_model(attention="sdpa", num_hidden_layers=2, **fields)


def _model(case: Case, **options):
    return patched_model(modeling, case, _stock(case), register_neurons=NEURONS, **options)


def _compiled(model, backend="eager", **options):
    return torch.compile(model, fullgraph=True, backend=backend, **options)


def _run(model, count=3, **options):
    with torch.no_grad():
        return forward(model, images(count), **options)


def _assert_compiles(model, backend="eager", **options):
    expected = _run(model, **options)  # first: transformers installs capturing hooks then, which no compiler traces
    assert_equal_outputs(_run(_compiled(model, backend), **options), expected, exact=False)


def test_every_mechanism_compiles_in_one_graph(bare_case):
    _assert_compiles(_model(bare_case))


@pytest.mark.parametrize(
    ("case", "output_registers"),
    [(CLASSIFIER, False), (BARE_CASES[-1], True), (BACKBONE, False), (BACKBONE, True)],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_hidden_states_compile_in_one_graph(case, output_registers):
    _assert_compiles(_model(case, output_registers=output_registers), output_hidden_states=True)


@pytest.mark.parametrize("backend", ["aot_eager", INDUCTOR])
def test_a_backend_that_lowers_the_graph_gives_the_same(backend):
    stock = BARE_CASES[0].stock_model(attention="sdpa", num_hidden_layers=1)
    _assert_compiles(patched_model(modeling, BARE_CASES[0], stock, register_neurons=[[0, 3]]), backend)


def test_the_other_options_compile():
    _assert_compiles(_model(BARE_CASES[0], shift_value="per_layer", shift_fill="mean", num_test_time_registers=2))


def test_one_graph_serves_batches_of_any_size():
    model = _model(BARE_CASES[-1])
    compiled = _compiled(model, dynamic=True)
    _run(compiled, 2)
    with torch.compiler.set_stance("fail_on_recompile"):
        for count in (3, 5):
            assert_equal_outputs(_run(compiled, count), _run(model, count), exact=False)


def test_the_switch_works_on_a_compiled_model():
    case = BARE_CASES[1]
    model, stock = _model(case), _stock(case)
    compiled = _compiled(model)
    for _ in range(2):
        assert_equal_outputs(_run(compiled), _run(model), exact=False)
        with model.disable_test_time_registers():
            assert_equal_outputs(_run(compiled), _run(stock), exact=False)


def test_a_compiled_training_step_gives_the_same_gradients():
    model = _model(BARE_CASES[0]).train()
    gradients = []
    for step in (model, _compiled(model, "aot_eager")):
        model.zero_grad()
        forward(step, images()).last_hidden_state.square().sum().backward()
        gradients.append({name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None})
    assert_equal_outputs(gradients[1], gradients[0], exact=False)


@pytest.mark.parametrize("case", BARE_CASES[:3], ids=lambda case: case.name)
def test_blocks_that_are_compiled_one_by_one_read_their_own_rows(case):
    """The graph of the middle block, which has no neurons and reads no row, does not fit the last one."""
    stock = case.stock_model(attention="sdpa")
    row_1D = torch.randn(1, stock.config.hidden_size)
    options = {"test_time_register_mode": "constant", "constants": row_1D}
    model = add_test_time_registers(stock, [[0, 3]], **options)
    expected = _run(model)
    for block in case.blocks_of(model):
        block.compile(backend="eager")
    assert_equal_outputs(_run(model), expected, exact=False)
