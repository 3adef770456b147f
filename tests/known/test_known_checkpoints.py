"""The files of `hub_configs/`: all valid, faithful in their counts, clear when broken, and carried by the wheel."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import ttreg_hf
from ttreg_hf.known.checkpoints import known_checkpoint, known_checkpoints
from ttreg_hf.known.hub_config_files import read_known_checkpoint, read_known_checkpoints
from ttreg_hf.known.known_checkpoint import PUBLISHED, SETTINGS_ONLY
from ttreg_hf.modeling.registers import SHIFT_FILLS, SHIFT_VALUES

REPOSITORY = Path(__file__).parents[2]
CONFIG_FILES = sorted((REPOSITORY / "hub_configs").glob("*.json"))

# base model -> family, layers, neurons per layer, published register neurons
EXPECTED = {
    "facebook/dinov2-small": ("dinov2", 12, 1536, None),
    "facebook/dinov2-base": ("dinov2", 12, 3072, None),
    "facebook/dinov2-large": ("dinov2", 24, 4096, 45),
    "facebook/dinov2-giant": ("dinov2", 40, 4096, None),
    "facebook/dinov3-vitb16-pretrain-lvd1689m": ("dinov3_vit", 12, 3072, None),
    "facebook/dinov3-vitl16-pretrain-lvd1689m": ("dinov3_vit", 24, 4096, None),
    "openai/clip-vit-base-patch16": ("clip_vision_model", 12, 3072, None),
    "openai/clip-vit-large-patch14": ("clip_vision_model", 24, 4096, None),
    "openai/clip-vit-large-patch14-336": ("clip_vision_model", 24, 4096, None),
    "laion/CLIP-ViT-B-16-laion2B-s34B-b88K": ("clip_vision_model", 12, 3072, None),
    "google/siglip2-base-patch16-256": ("siglip_vision_model", 12, 3072, 50),
    "google/siglip2-so400m-patch14-224": ("siglip_vision_model", 27, 4304, 72),
}

VALID = {
    "base_model": "org/name",
    "family": "dinov2",
    "num_hidden_layers": 12,
    "neurons_per_layer": 3072,
    "dataset": {"id": "org/images", "split": "train", "image_column": "image"},
    "recipe": {"top_k": 2, "norm_threshold": 30, "last_layer": 5, "source": "somewhere"},
    "register_neurons": [[5, 7], [4, 3071]],
    "options": {"shift_value": "per_layer"},
    "source": "somewhere",
    "status": PUBLISHED,
}


def _write(folder: Path, content: object, *, name: str = "org--name.json") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.parametrize("path", CONFIG_FILES, ids=lambda path: path.stem)
def test_every_shipped_file_is_valid(path):
    known = read_known_checkpoint(path)
    assert known_checkpoint(known.base_model) == known


def test_shipped_checkpoints_state_the_expected_architectures_and_counts():
    found = {
        known.base_model: (
            known.family,
            known.num_hidden_layers,
            known.neurons_per_layer,
            None if known.register_neurons is None else len(known.register_neurons),
        )
        for known in known_checkpoints().values()
    }
    assert found == EXPECTED


def test_dinov2_large_keeps_the_published_order_layers_and_option():
    known = known_checkpoint("facebook/dinov2-large")
    assert known.register_neurons[:4] == ((17, 884), (17, 133), (17, 1427), (17, 3464))
    per_layer = {layer: sum(pair[0] == layer for pair in known.register_neurons) for layer in range(12, 18)}
    assert per_layer == {12: 1, 13: 1, 14: 8, 15: 9, 16: 9, 17: 17}
    assert known.options.settings() == {"shift_value": "per_layer"}
    assert known.recipe.settings() == {
        "num_images": 1000,
        "norm_threshold": 150.0,
        "detection_layer": 22,
        "last_layer": 17,
        "top_k": 45,
    }


def test_unknown_names_and_local_paths_are_not_known(tmp_path):
    assert known_checkpoint("facebook/dinov2-large-imagenet1k-1-layer") is None
    assert known_checkpoint(str(tmp_path / "facebook/dinov2-large")) is None


def test_changing_the_returned_dict_changes_nothing():
    known_checkpoints().clear()
    assert len(known_checkpoints()) == len(EXPECTED)


def test_a_valid_file_is_read_whole(tmp_path):
    known = read_known_checkpoint(_write(tmp_path, VALID))
    assert known.register_neurons == ((5, 7), (4, 3071))
    assert known.dataset.image_column == "image"
    assert known.recipe.settings() == {"top_k": 2, "norm_threshold": 30, "last_layer": 5}
    assert hash(known) == hash(read_known_checkpoint(tmp_path / "org--name.json"))


def test_settings_only_needs_neither_neurons_nor_recipe(tmp_path):
    content = VALID | {"register_neurons": None, "recipe": {}, "options": {}, "status": SETTINGS_ONLY}
    known = read_known_checkpoint(_write(tmp_path, content))
    assert known.register_neurons is None
    assert known.recipe.settings() == {}
    assert known.options.settings() == {}


BROKEN = {
    "not JSON": ("{", "must be JSON of a known checkpoint. Expecting property name"),
    "not an object": ([], r"the file must be an object, got \[\]"),
    "unknown field": (VALID | {"neurons": []}, "the file has no field `neurons`; it has base_model"),
    "missing field": ({"base_model": "org/name"}, "the file must have a field `family`, got none"),
    "unknown recipe field": (
        VALID | {"recipe": {"topk": 3}},
        "the file.recipe has no field `topk`; it has num_images",
    ),
    "recipe not an object": (VALID | {"recipe": 3}, "the file.recipe must be an object, got 3"),
    "dataset without split": (VALID | {"dataset": {"id": "a/b"}}, "the file.dataset must have a field `split`"),
    "wrong type": (VALID | {"num_hidden_layers": "12"}, "the file.num_hidden_layers must be a whole number, got '12'"),
    "boolean for a number": (
        VALID | {"neurons_per_layer": True},
        "neurons_per_layer must be a whole number, got True",
    ),
    "fraction for an integer": (VALID | {"recipe": {"top_k": 2.5}}, "recipe.top_k must be a whole number, got 2.5"),
    "text for a number": (VALID | {"recipe": {"norm_threshold": "a"}}, "norm_threshold must be a number, got 'a'"),
    "neurons not pairs": (
        VALID | {"register_neurons": [[1, 2, 3]]},
        r"register_neurons\[0\] must be a list of 2, got",
    ),
    "expectations no list": (VALID | {"expectations": {}}, r"expectations must be a list, got \{\}"),
}


@pytest.mark.parametrize(("content", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_file_gives_its_message_and_names_the_file(tmp_path, content, message):
    path = _write(tmp_path, content)
    with pytest.raises(ValueError, match=message) as caught:
        read_known_checkpoints(tmp_path)
    assert str(caught.value).startswith(f"{path} ")


def test_dinov2_large_expects_the_strong_core():
    known = known_checkpoints()["facebook/dinov2-large"]
    ranks = {item.neuron: item.at_most for item in known.expectations if item.quantity == "rank"}
    assert ranks == {(17, 884): 1} | {(17, n): 10 for n in (133, 3464, 2129, 2436, 2373, 1427)}
    assert set(ranks) <= set(known.register_neurons)


# what can be expected of a checkpoint -> what the expectation has to name beside it
QUANTITIES = {
    "norm_median": "layer",
    "norm_max": "layer",
    "paper_threshold": "layer",
    "first_outlier_layer": None,
    "rank": "neuron",
    "score_ratio": None,
    "published_in_top_k": None,
    "published_in_top_2k": None,
}


@pytest.fixture(params=CONFIG_FILES, ids=lambda path: path.stem)
def known(request):
    return read_known_checkpoint(request.param)


def test_a_file_is_named_after_its_base_model():
    assert [path.name for path in CONFIG_FILES] == [
        read_known_checkpoint(path).base_model.replace("/", "--") + ".json" for path in CONFIG_FILES
    ]


def test_figures_have_a_source_and_a_status(known):
    assert known.status == (SETTINGS_ONLY if known.register_neurons is None else PUBLISHED)
    assert known.source
    assert known.recipe.source or not known.recipe.settings()
    assert all(item.source for item in (*known.expectations, *known.reported))


def test_layers_neurons_and_settings_are_those_of_such_a_model(known):
    recipe, layers = known.recipe, range(known.num_hidden_layers)
    given = (recipe.detection_layer, recipe.first_layer, recipe.last_layer)
    assert all(layer is None or layer in layers for layer in given)
    positive = (recipe.num_images, recipe.norm_threshold, recipe.top_k, known.options.num_test_time_registers)
    assert all(value is None or value > 0 for value in positive)
    neurons = known.register_neurons
    assert neurons is None or neurons
    assert len(set(neurons or ())) == len(neurons or ())
    assert all(layer in layers and 0 <= neuron < known.neurons_per_layer for layer, neuron in neurons or ())
    assert known.options.shift_value in (None, *SHIFT_VALUES)
    assert known.options.shift_fill in (None, *SHIFT_FILLS)


def test_an_expectation_names_what_it_is_about_and_has_bounds(known):
    for item in known.expectations:
        named = {name for name in ("layer", "neuron") if getattr(item, name) is not None}
        assert named == ({QUANTITIES[item.quantity]} - {None})
        layer, neuron = item.neuron or (item.layer or 0, 0)
        assert 0 <= layer < known.num_hidden_layers
        assert 0 <= neuron < known.neurons_per_layer
        low, high = item.at_least, item.at_most
        assert (low, high) != (None, None)
        assert low is None or high is None or low <= high
        assert known.register_neurons or not item.quantity.startswith("published")


def test_reading_known_checkpoints_imports_no_torch():
    code = """
import sys, types
package = types.ModuleType("ttreg_hf")  # the submodule alone, without the package's front door
package.__path__ = [sys.argv[1]]
sys.modules["ttreg_hf"] = package
from ttreg_hf.known.checkpoints import known_checkpoints
assert known_checkpoints()
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code, str(REPOSITORY / "ttreg_hf")], check=True)


def test_the_wheel_carries_the_data_files(tmp_path):
    pytest.importorskip("hatchling")
    command = [sys.executable, "-m", "pip", "wheel", str(REPOSITORY), "--no-deps", "--no-build-isolation", "--quiet"]
    subprocess.run([*command, "--wheel-dir", str(tmp_path)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    photographs = sorted((REPOSITORY / "ttreg_hf" / "images" / "photographs").glob("*.jpg"))
    assert {f"ttreg_hf/hub_configs/{path.name}" for path in CONFIG_FILES} <= names
    assert {f"ttreg_hf/images/photographs/{path.name}" for path in photographs} <= names
    assert {
        "ttreg_hf/py.typed",
        "ttreg_hf/images/photographs/ATTRIBUTION.md",
        "ttreg_hf/known/checkpoints.py",
    } <= names
    assert {name.split("/")[0] for name in names} == {"ttreg_hf", f"ttreg_hf-{ttreg_hf.__version__}.dist-info"}
