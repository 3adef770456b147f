"""The files of `hub_configs/`: all valid, faithful in their counts, clear when broken, and carried by the wheel."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from ttreg_hf.hub_config_files import read_known_checkpoint, read_known_checkpoints
from ttreg_hf.known_checkpoints import known_checkpoint, known_checkpoints
from ttreg_hf.publications import PUBLISHED, SETTINGS_ONLY

REPOSITORY = Path(__file__).parents[1]
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
    "not JSON": ("{", "must be valid JSON, got: Expecting property name"),
    "not an object": ([], r"the file must be a JSON object, got \[\]"),
    "unknown field": (VALID | {"neurons": []}, "the file has the unknown field `neurons`; known are `base_model`"),
    "missing field": ({"base_model": "org/name"}, "the file must have the fields .* got no `family`. Add it."),
    "unknown recipe field": (VALID | {"recipe": {"topk": 3}}, "`recipe` has the unknown field `topk`; known are `num"),
    "recipe not an object": (VALID | {"recipe": 3}, "`recipe` must be a JSON object, got 3"),
    "recipe without source": (VALID | {"recipe": {"top_k": 3}}, "`recipe` must say where its settings come from"),
    "dataset without split": (VALID | {"dataset": {"id": "a/b"}}, "`dataset` must have the fields .* got no `split`"),
    "wrong type": (VALID | {"num_hidden_layers": "12"}, "`num_hidden_layers` must be an integer, got '12'"),
    "boolean for a number": (VALID | {"neurons_per_layer": True}, "`neurons_per_layer` must be an integer, got True"),
    "fraction for an integer": (VALID | {"recipe": {"top_k": 2.5}}, "`top_k` must be an integer or null, got 2.5"),
    "text for a number": (
        VALID | {"recipe": {"norm_threshold": "a"}},
        "`norm_threshold` must be a number or null, got 'a'",
    ),
    "no layers": (VALID | {"num_hidden_layers": 0}, "`num_hidden_layers` must be above 0, got 0"),
    "option value": (
        VALID | {"options": {"shift_value": "per_head"}},
        "`shift_value` must be one of `per_neuron`, `per_layer`, got 'per_head'",
    ),
    "status": (VALID | {"status": SETTINGS_ONLY}, "`status` must be 'published, .*' here, got 'settings only'"),
    "recipe layer": (
        VALID | {"recipe": {"last_layer": 12, "source": "a"}},
        r"`last_layer` must be a layer of a model with 12 layers \(0 to 11\), got 12",
    ),
    "neurons not pairs": (
        VALID | {"register_neurons": [[1, 2, 3]]},
        r"`register_neurons` must be \[\[layer, neuron\], ...\] or null, got \[\[1, 2, 3\]\]",
    ),
    "empty neurons": (VALID | {"register_neurons": []}, r"`register_neurons` must be .* or null, got \[\]"),
    "layer out of range": (
        VALID | {"register_neurons": [[77, 1]]},
        r"names layer 77, but this is a model with 12 layers \(0 to 11\). Correct the layer.",
    ),
    "negative layer": (VALID | {"register_neurons": [[-1, 1]]}, "names layer -1"),
    "neuron out of range": (
        VALID | {"register_neurons": [[5, 3072]]},
        r"names neuron 3072 of layer 5, but a layer has 3072 neurons \(0 to 3071\). Correct the neuron.",
    ),
    "duplicate": (VALID | {"register_neurons": [[5, 7], [5, 7]]}, r"must not repeat a neuron, got \[5, 7\] twice"),
    "file name": (
        VALID | {"base_model": "org/other"},
        "named after its `base_model` 'org/other'. Rename it to org--other",
    ),
}


@pytest.mark.parametrize(("content", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_file_gives_its_message_and_names_the_file(tmp_path, content, message):
    path = _write(tmp_path, content)
    with pytest.raises(ValueError, match=message) as caught:
        read_known_checkpoints(tmp_path)
    assert str(caught.value).startswith(f"{path}: ")


def test_dinov2_large_expects_the_strong_core():
    known = known_checkpoints()["facebook/dinov2-large"]
    ranks = {item.neuron: item.at_most for item in known.expectations if item.quantity == "rank"}
    assert ranks == {(17, 884): 1} | {(17, n): 10 for n in (133, 3464, 2129, 2436, 2373, 1427)}
    assert set(ranks) <= set(known.register_neurons)


BROKEN_EXPECTATIONS = {
    "not a list": ({}, r"`expectations` must be a list of JSON objects, got \{\}"),
    "not objects": ([3], "`expectations` 0 must be a JSON object, got 3"),
    "unknown field": ([{"quantity": "rank", "source": "a", "up": 1}], "`expectations` 0 has the unknown field `up`"),
    "unknown quantity": (
        [{"quantity": "beauty", "source": "a", "at_least": 1}],
        "must be one of `norm_median`, .*'beau",
    ),
    "no source": ([{"quantity": "score_ratio", "source": "", "at_least": 1}], "say where it comes from.*score_ratio"),
    "no bound": ([{"quantity": "score_ratio", "source": "a"}], "`at_least` <= `at_most`, or one of them; score_ratio"),
    "bounds crossed": (
        [{"quantity": "score_ratio", "source": "a", "at_least": 2, "at_most": 1}],
        "score_ratio has 2, 1",
    ),
    "layer missing": ([{"quantity": "norm_max", "source": "a", "at_least": 1}], "norm_max must come with `layer`"),
    "layer too many": (
        [{"quantity": "score_ratio", "source": "a", "at_least": 1, "layer": 1}],
        "score_ratio must come with neither `layer` nor `neuron`",
    ),
    "neuron not a pair": (
        [{"quantity": "rank", "source": "a", "at_least": 1, "neuron": [1]}],
        r"`neuron` must be \[layer, neuron\] or null, got \[1\]",
    ),
    "layer out of range": (
        [{"quantity": "norm_max", "source": "a", "at_least": 1, "layer": 12}],
        r"names layer 12 and neuron 0, but this is a model with 12 layers \(0 to 11\) and 3072 neurons a layer",
    ),
    "neuron out of range": (
        [{"quantity": "rank", "source": "a", "at_least": 1, "neuron": [0, 3072]}],
        "names layer 0 and neuron 3072",
    ),
    "overlap with nothing": (
        [{"quantity": "published_in_top_k", "source": "a", "at_least": 1}],
        "published_in_top_k must come with `register_neurons`, got null",
    ),
}


@pytest.mark.parametrize(("expectations", "message"), BROKEN_EXPECTATIONS.values(), ids=BROKEN_EXPECTATIONS.keys())
def test_a_broken_expectation_gives_its_message(tmp_path, expectations, message):
    none_published = {"recipe": {}, "register_neurons": None, "options": {}, "status": SETTINGS_ONLY}
    path = _write(tmp_path, {**VALID, **none_published, "expectations": expectations})
    with pytest.raises(ValueError, match=message):
        read_known_checkpoint(path)


def test_reading_known_checkpoints_imports_no_torch():
    code = """
import sys, types
package = types.ModuleType("ttreg_hf")  # the submodule alone, without the package's front door
package.__path__ = [sys.argv[1]]
sys.modules["ttreg_hf"] = package
from ttreg_hf.known_checkpoints import known_checkpoints
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
    photographs = sorted((REPOSITORY / "ttreg_hf" / "photographs").glob("*.jpg"))
    assert {f"ttreg_hf/hub_configs/{path.name}" for path in CONFIG_FILES} <= names
    assert {f"ttreg_hf/photographs/{path.name}" for path in photographs} <= names
    assert {"ttreg_hf/py.typed", "ttreg_hf/photographs/ATTRIBUTION.md", "ttreg_hf/known_checkpoints.py"} <= names
    assert {name.split("/")[0] for name in names} == {"ttreg_hf", "ttreg_hf-0.1.0.dist-info"}
