"""Constant mode: every attention implementation, saved and loaded, compiled and exported, and what is refused."""

import copy
import threading

import pytest
import torch
from families import NUM_PATCHES, SOME_CASES, Case, images
from safetensors.torch import load_file

from modeling.constant_laws import SPIKES, with_spikes
from modeling.laws import assert_equal_outputs, forward, run
from ttreg_hf.applying import add_test_time_registers, constants_of, moving_of, patching_of

NEURONS = [[0, 3], [1, 5], [1, 0]]
NAME = "test_time_register_constants"
DINOV2 = SOME_CASES[0]
LETTERS = [case for case in SOME_CASES if case.is_bare]


def _rows(stock, count: int) -> torch.Tensor:
    width = getattr(stock.config, "vision_config", stock.config).hidden_size
    return torch.randn(count, width, generator=torch.Generator().manual_seed(3))


def _model(case: Case, count: int = 2, attention: str = "eager", **fields):
    stock = case.stock_model(attention=attention, **fields)
    rows = _rows(stock, count)
    return add_test_time_registers(stock, NEURONS, test_time_register_mode="constant", constants=rows)


def _states(model, count: int = 3):
    return run(model, images(count), output_attentions=False)


@pytest.mark.parametrize("count", [1, 3])
def test_hooks_of_an_earlier_patching_are_gone(count):
    stock = DINOV2.stock_model()
    fresh = add_test_time_registers(
        stock, NEURONS, test_time_register_mode="constant", constants=(rows := _rows(stock, count))
    )
    for before in (add_test_time_registers(stock, NEURONS), _model(DINOV2)):
        found = add_test_time_registers(before, NEURONS, test_time_register_mode="constant", constants=rows)
        assert_equal_outputs(run(found, images()), run(fresh, images()))


def test_a_pass_goes_on_while_another_thread_runs_the_base_model():
    model = _model(DINOV2)
    expected = run(model, images())
    threads = []

    def base_model():
        with model.disable_test_time_registers():
            forward(model, images())

    def run_beside(module, args, output):
        if not threads:
            threads.append(threading.Thread(target=base_model))
            threads[0].start()
            threads[0].join()

    DINOV2.blocks_of(model)[0].register_forward_hook(run_beside)
    assert_equal_outputs(run(model, images()), expected)
    assert threads


def test_another_mode_in_the_config_alone_is_an_error():
    model = add_test_time_registers(DINOV2.stock_model(), [], fixed_positions=SPIKES)
    model.config.test_time_register_mode = "constant"
    with pytest.raises(AttributeError, match=NAME):
        forward(model, images())


@pytest.mark.parametrize("case", LETTERS, ids=lambda case: case.name)
def test_every_attention_implementation_gives_the_same(case):
    if "sdpa" not in case.family.lacks:
        found, expected = (_states(_model(case, attention=name)) for name in ("sdpa", "eager"))
        assert_equal_outputs(dict(found), dict(expected), exact=False)


def test_a_batch_is_its_images_one_by_one(bare_case):
    model = _model(bare_case)
    together = _states(model).last_hidden_state
    alone = [run(model, image[None], output_attentions=False).last_hidden_state for image in images(3)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=2e-4, atol=2e-5)


def test_the_rows_are_one_more_tensor_of_the_file_and_come_back_with_it(case, tmp_path):
    model = _model(case)
    model.save_pretrained(tmp_path)
    case.stock_model().save_pretrained(tmp_path / "stock")
    names, of_stock = (load_file(folder / "model.safetensors").keys() for folder in (tmp_path, tmp_path / "stock"))
    (added,) = names - of_stock
    assert added.endswith(NAME)
    loaded, report = type(model).from_pretrained(tmp_path, output_loading_info=True, attn_implementation="eager")
    assert report["missing_keys"] == report["unexpected_keys"] == set()
    assert_equal_outputs(run(loaded.eval(), images()), run(model, images()))
    named = {"config": case.stock_model().config}  # RADIO's names on disk are found by the config's type
    _, report = case.stock_class.from_pretrained(tmp_path, output_loading_info=True, **named)
    assert report["missing_keys"] == set()
    assert {name.split(".")[-1] for name in report["unexpected_keys"]} == {NAME}


def test_without_its_rows_a_checkpoint_gives_no_features_that_look_right(tmp_path):
    model = _model(DINOV2)
    config = model.config
    DINOV2.stock_model().save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, config=config)
    assert constants_of(loaded).isnan().all()
    assert _states(loaded.eval()).last_hidden_state.isnan().all()


def test_a_model_that_is_made_new_has_no_rows_until_it_gets_some():
    model = type(_model(DINOV2))(_model(DINOV2).config)
    assert constants_of(model).isnan().all()
    model.post_init()
    assert constants_of(model).isnan().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_rows_have_the_models_dtype(dtype):
    stock = DINOV2.stock_model().to(dtype)
    model = add_test_time_registers(stock, NEURONS, test_time_register_mode="constant", constants=_rows(stock, 2))
    assert constants_of(model).dtype == dtype
    with torch.no_grad():
        assert forward(model, images().to(dtype)).last_hidden_state.dtype == dtype
    rows = constants_of(model).float()
    trunk = model.get_submodule(model.trunk_name)
    trunk.test_time_register_constants = rows  # cast at use
    with torch.no_grad():
        assert forward(model, images().to(dtype)).last_hidden_state.dtype == dtype


def test_a_patched_model_changes_its_mode_and_stays_as_it_was():
    constant = _model(DINOV2)
    expected = run(constant, images())
    token = add_test_time_registers(constant, NEURONS)
    assert constants_of(token) is None
    assert token.token_layout.num_test_time_registers == 0  # none in the outputs
    assert token.registers.layout.num_test_time_registers == 1
    assert_equal_outputs(run(token, images()), run(add_test_time_registers(DINOV2.stock_model(), NEURONS), images()))
    again = add_test_time_registers(token, NEURONS, **patching_of(constant))
    assert_equal_outputs(run(again, images()), expected)
    moved = add_test_time_registers(constant, NEURONS, **moving_of(constant))
    assert_equal_outputs(run(moved, images()), run(token, images()))
    assert_equal_outputs(run(constant, images()), expected)
    assert_equal_outputs(run(copy.deepcopy(constant), images()), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"Constant mode needs the rows that calibration measures; .* `ttreg calibrate MODEL --output DIR`"),
        ({"constants": torch.zeros(4, 16)}, r"`constants` is \(rows, 16\) .* 3 at most, got \(4, 16\)"),
        ({"constants": torch.zeros(2, 8)}, r"got \(2, 8\)"),
        ({"constants": torch.zeros(16)}, r"got \(16,\)"),
        (
            {"constants": torch.zeros(2, 16), "shift_fill": "keep"},
            r"is token where shift options are not the defaults",
        ),
        ({"constants": torch.zeros(2, 16), "output_registers": True}, r"is token where shift options"),
        ({"constants": torch.zeros(2, 16), "num_test_time_registers": 2}, r"is token where shift options"),
    ],
    ids=str,
)
def test_what_constant_mode_cannot_do_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        add_test_time_registers(DINOV2.stock_model(), NEURONS, test_time_register_mode="constant", **options)


@pytest.mark.parametrize("name", ["dinov2", "dinov2-swiglu", "dinov3", "siglip", "siglip2", "clip", "blip"])
def test_it_compiles_in_one_graph_and_is_exported(name):
    case = next(case for case in LETTERS if case.family.name == name)
    model = _model(case, attention="sdpa", num_hidden_layers=2)
    with torch.no_grad():
        expected = forward(model, images())
        torch.compiler.reset()
        found = forward(torch.compile(model, fullgraph=True, backend="eager"), images())
        torch.compiler.reset()
    torch.testing.assert_close(found.last_hidden_state, expected.last_hidden_state, rtol=2e-4, atol=2e-5)


def test_it_is_exported_with_its_rows():
    model = _model(DINOV2, attention="sdpa", num_hidden_layers=2)
    with torch.no_grad():
        expected = model(images()).last_hidden_state
        batch = {"pixel_values": {0: torch.export.Dim("batch")}}
        exported = torch.export.export(model, (), {"pixel_values": images(2)}, dynamic_shapes=batch, strict=False)
    assert NAME in dict(exported.named_buffers())
    found = exported.module()(pixel_values=images())["last_hidden_state"]
    torch.testing.assert_close(found, expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("size", [(6, 4), (2, 3), (3, 5)])
@pytest.mark.parametrize("name", ["dinov2", "vit", "siglip"])
def test_spikes_are_taken_away_where_the_table_is_interpolated_for_other_sizes(name, size):
    case = next(case for case in LETTERS if case.family.name == name)
    stock = case.stock_model()
    patch = stock.config.patch_size
    pixel_values = torch.randn(2, 3, size[0] * patch, size[1] * patch)
    options = {} if name == "dinov2" else {"interpolate_pos_encoding": True}
    table, _, cured = with_spikes(case, stock)
    model = add_test_time_registers(stock, [], fixed_positions=SPIKES)
    with torch.no_grad():
        found = model.get_submodule(model.trunk_name).embeddings(pixel_values, **options)
        table.copy_(cured)
        expected = stock.get_submodule(model.trunk_name).embeddings(pixel_values, **options)
    prefix = case.family.num_prefix_tokens
    found = torch.cat([found[:, :prefix], found[:, prefix + 1 :]], dim=1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-3)


def test_spikes_are_taken_away_on_the_grid_of_each_image_of_siglip_2():
    case = next(case for case in LETTERS if case.family.name == "siglip2")
    stock = case.stock_model()
    table, _, cured = with_spikes(case, stock)
    shapes = torch.tensor([[2, 5], [3, 3], [4, 2]])
    patches = torch.randn(3, NUM_PATCHES, 3 * stock.config.patch_size**2)
    model = add_test_time_registers(stock, [], fixed_positions=SPIKES)
    with torch.no_grad():
        found = model.get_submodule(model.trunk_name).embeddings(patches, shapes)[:, 1:]
        table.copy_(cured)
        expected = stock.get_submodule(model.trunk_name).embeddings(patches, shapes)
    for image, (height, width) in enumerate(shapes.tolist()):  # padding is nobody's
        here = slice(0, height * width)
        torch.testing.assert_close(found[image, here], expected[image, here], rtol=1e-4, atol=2e-3)
