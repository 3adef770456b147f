"""The config of a patched model: its fields, what it refuses, and its JSON."""

import inspect
import json

import pytest
from families import CASES, NEURONS, TINY
from huggingface_hub.errors import StrictDataclassError

from modeling.laws import down_projection, patched_class, patched_model
from ttreg_hf import modeling
from ttreg_hf.known.auto_classes import stock_classes
from ttreg_hf.modeling import modeling_ttreg

FIELDS = {
    "num_test_time_registers": 2,
    "register_neurons": NEURONS,
    "shift_value": "per_layer",
    "shift_fill": "mean",
    "shift_scale": 0.5,
    "output_registers": True,
    "base_model_name_or_path": "org/name",
    "base_model_revision": "abc",
    "calibrated_patches": 256,
    "tower": None,
    "test_time_register_mode": "token",
    "constant_first_layer": 1,
    "fixed_positions": [[0, 1], [2, 0]],
}


PAIRS = r"`register_neurons` holds \[layer, neuron\] pairs of whole numbers from 0, each once, got"

# one without a head, one with two towers, one around any tower, one around a backbone
CONFIGS = ("Dinov2", "CLIP", "Llava", "DPT")


@pytest.fixture(params=CONFIGS)
def config_class(request):
    return getattr(modeling_ttreg, f"{request.param}TTRegConfig")


def _base_class(config_class):
    return next(cls for cls in config_class.__mro__ if cls.__module__.startswith("transformers."))


def _tiny(config_class):
    """Fields of a tiny model; of a model with more than a vision tower only that tower's.

    A copy of `TINY`: transformers 5.18 writes the tower's type into what it is given.
    """
    if "backbone_config" in config_class.sub_configs:
        return {"backbone_config": {"model_type": "dinov2", **TINY}}
    return {"vision_config": {"model_type": "clip_vision_model", **TINY}} if config_class.sub_configs else TINY


def _fields(config_class):
    """`FIELDS`, as far as a config takes them: what reads the tower's hidden states takes no registers among them."""
    return {**FIELDS, "output_registers": not hasattr(config_class, "vision_feature_layer")}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"register_neurons": [[0, 1], [-1, 1]]}, rf"{PAIRS} \[-1, 1\]\."),
        ({"register_neurons": [[0, -2]]}, rf"{PAIRS} \[0, -2\]\."),
        ({"register_neurons": [[1, 2], [0, 2], [1, 2]]}, rf"{PAIRS} \[1, 2\]\."),
        ({"register_neurons": [[1, 2], (1, 2)]}, rf"{PAIRS} \[1, 2\]\."),
        ({"register_neurons": [[1, 2, 3]]}, rf"{PAIRS} \[1, 2, 3\]\."),
        ({"register_neurons": [[1, 2.0]]}, rf"{PAIRS} \[1, 2\.0\]\."),
        ({"register_neurons": [[True, 2]]}, rf"{PAIRS} \[True, 2\]\."),
        ({"register_neurons": [["1", "2"]]}, rf"{PAIRS} \['1', '2'\]\."),
        ({"register_neurons": [3]}, rf"{PAIRS} 3\."),
        ({"fixed_positions": [[0, 1], [2, -1]]}, r"`fixed_positions` holds \[row, column\] pairs .* got \[2, -1\]\."),
        ({"fixed_positions": 3}, r"fixed_positions"),
        ({"test_time_register_mode": "fast"}, r"`test_time_register_mode` is token or constant, got 'fast'"),
        ({"test_time_register_mode": None}, r"test_time_register_mode"),
        *(
            ({"test_time_register_mode": "constant", **option}, r"is token where shift options are not the defaults")
            for option in (
                {"num_test_time_registers": 2},
                {"shift_value": "per_layer"},
                {"shift_fill": "keep"},
                {"shift_scale": 0.5},
                {"output_registers": True},
            )
        ),
        ({"constant_first_layer": -1}, r"`constant_first_layer` is 0 or more, got -1"),
        ({"constant_first_layer": None}, r"constant_first_layer"),
        ({"register_neurons": {"1": [2]}}, r"register_neurons"),
        ({"register_neurons": "1/2"}, r"register_neurons"),
        ({"register_neurons": None}, r"register_neurons"),
        ({"num_test_time_registers": -1}, r"`num_test_time_registers` is from 0 to 1024, got -1"),
        ({"num_test_time_registers": 10**9}, r"`num_test_time_registers` is from 0 to 1024, got 1000000000"),
        ({"shift_scale": float("inf")}, r"`shift_scale` is a finite number, got inf"),
        ({"shift_scale": float("nan")}, r"`shift_scale` is a finite number, got nan"),
        ({"num_test_time_registers": 1.5}, r"num_test_time_registers"),
        ({"num_test_time_registers": "1"}, r"num_test_time_registers"),
        ({"num_test_time_registers": True}, r"num_test_time_registers"),
        ({"shift_value": "per_token"}, r"`shift_value` is one of per_neuron, per_layer, got 'per_token'"),
        ({"shift_value": None}, r"shift_value"),
        ({"shift_fill": "noise"}, r"`shift_fill` is one of zero, mean, outliers, keep, got 'noise'"),
        ({"shift_scale": "2"}, r"shift_scale"),
        ({"output_registers": "yes"}, r"output_registers"),
        ({"base_model_name_or_path": 3}, r"base_model_name_or_path"),
    ],
    ids=str,
)
def test_a_wrong_field_is_refused_with_its_message(fields, message):
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        modeling_ttreg.Dinov2TTRegConfig(**TINY, **fields)


def test_every_config_refuses_wrong_fields(config_class):
    for fields in ({"register_neurons": [[0, -2]]}, {"shift_scale": "2"}, {"num_test_time_registers": -1}):
        with pytest.raises((ValueError, StrictDataclassError), match=next(iter(fields))):
            config_class(**_tiny(config_class), **fields)


@pytest.mark.parametrize(("layer", "neuron"), [(2, 64), (2, 10_000), (3, 0), (77, 1)])
def test_a_neuron_that_the_model_does_not_have_is_refused_by_it(bare_case, layer, neuron):
    case = bare_case
    blocks = case.blocks_of(case.stock_model())
    width = down_projection(blocks[layer]).in_features if layer < len(blocks) else 0
    message = (
        rf"`register_neurons` names {layer}/{neuron}; this model has {width} neurons there, and layers 0 to 2\. "
        r"Recalibrate for this checkpoint, or pass the config it was calibrated with\."
    )
    with pytest.raises(ValueError, match=message):
        patched_model(modeling, case, case.stock_model(), register_neurons=[[2, 1], [layer, neuron]])


def test_defaults_are_one_register_and_no_neurons(config_class):
    config = config_class(**_tiny(config_class))
    assert (config.num_test_time_registers, config.register_neurons, config.output_registers) == (1, [], False)
    assert (config.shift_value, config.shift_fill, config.shift_scale) == ("per_neuron", "zero", 1.0)
    assert (config.base_model_name_or_path, config.base_model_revision) == (None, None)


def test_the_base_models_fields_are_its_own(config_class):
    tiny = _tiny(config_class)
    ours, base = config_class(**tiny, **_fields(config_class)).to_dict(), _base_class(config_class)(**tiny).to_dict()
    assert {name: ours[name] for name in base.keys() - {"model_type"}} == {
        name: value for name, value in base.items() if name != "model_type"
    }
    assert set(ours) - set(base) == {*FIELDS, "auto_map"}


def test_a_config_survives_json(config_class, tmp_path):
    fields = _fields(config_class)
    config = config_class(**_tiny(config_class), **fields)
    config.save_pretrained(tmp_path)
    loaded = config_class.from_pretrained(tmp_path)
    assert {name: getattr(loaded, name) for name in fields} == fields
    assert loaded.to_dict() == config.to_dict() | {
        "transformers_version": loaded.to_dict().get("transformers_version")
    }


def test_pairs_may_be_tuples_and_are_lists_afterwards(config_class):
    config = config_class(**_tiny(config_class), register_neurons=((1, 5), (0, 3)))
    assert config.register_neurons == [[1, 5], [0, 3]]


def test_the_saved_file_names_type_classes_and_fields(config_class, tmp_path):
    fields = _fields(config_class)
    config_class(**_tiny(config_class), **fields).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert saved["model_type"] == f"{_base_class(config_class).model_type}_ttreg"
    assert {name: saved[name] for name in fields} == fields
    assert saved["auto_map"]["AutoConfig"].endswith(f".{config_class.__name__}")
    heads = stock_classes(_base_class(config_class))
    assert saved["auto_map"].keys() == {"AutoConfig", *heads}
    for auto, stock in heads.items():
        assert saved["auto_map"][auto] == f"modeling_ttreg.{modeling_ttreg.patched_name(stock)}"


def test_a_config_that_was_made_wrong_is_not_saved(config_class, tmp_path):
    config = config_class(**_tiny(config_class), register_neurons=[[0, 1]])
    config.register_neurons = [[9, -1]]
    with pytest.raises((ValueError, StrictDataclassError), match=rf"{PAIRS} \[9, -1\]"):
        config.save_pretrained(tmp_path)


def test_the_stock_config_ignores_the_fields(config_class):
    """Fields of a patched model in a stock config mean nothing, and are no error."""
    base = _base_class(config_class)(**_tiny(config_class), **FIELDS)
    assert base.model_type == config_class.model_type.removesuffix("_ttreg")


def test_every_head_reads_the_same_config_class(case):
    config_class = patched_class(modeling, case).config_class
    assert config_class.model_type == f"{case.stock_class.config_class.model_type}_ttreg"


@pytest.mark.parametrize("case", [case for case in CASES if case.has_two_towers], ids=lambda case: case.name)
def test_towers_are_stock_typed_and_saved_as_such(case, tmp_path):
    """A stranger's transformers would not know another type inside a config."""
    patched_model(modeling, case, case.stock_model()).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    stock = case.stock_model().config
    for tower in ("vision_config", "text_config"):
        assert saved[tower]["model_type"] == getattr(stock, tower).model_type
        assert not set(FIELDS) & set(saved[tower])


@pytest.mark.parametrize("case", [case for case in CASES if case.has_two_towers], ids=lambda case: case.name)
def test_the_vision_towers_config_of_a_checkpoint_with_both_keeps_the_fields(case, tmp_path):
    model = patched_model(modeling, case, case.stock_model(), shift_fill="mean")
    model.save_pretrained(tmp_path)
    tower = patched_class(modeling, next(bare for bare in CASES if bare.family is case.family and bare.is_bare))
    config = tower.config_class.from_pretrained(tmp_path)
    assert (config.register_neurons, config.shift_fill) == (NEURONS, "mean")
    assert config.hidden_size == TINY["hidden_size"]


def test_the_constructor_is_the_stock_classes(case):
    """Whoever asks its signature finds options such as ViT's `use_mask_token`; transformers' own tests do."""
    found, stock = (inspect.signature(cls.__init__) for cls in (patched_class(modeling, case), case.stock_class))
    assert list(found.parameters) == list(stock.parameters)
