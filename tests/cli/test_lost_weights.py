"""A checkpoint whose weights do not all load is an error in every verb that loads one, not a random model."""

import shutil

import pytest
from safetensors.torch import load_file, save_file

from ttreg_hf.images.photographs import photograph_paths

from .conftest import run


@pytest.fixture(params=["one block is missing", "names begin with module.", "one shape is another"])
def damaged(request, base, tmp_path):
    folder = shutil.copytree(base, tmp_path / "damaged")
    weights = load_file(folder / "model.safetensors")
    if request.param == "one block is missing":
        weights = {name: value for name, value in weights.items() if ".layer.3." not in name}
    elif request.param == "names begin with module.":
        weights = {f"module.{name}": value for name, value in weights.items()}
    else:
        weights["encoder.layer.3.mlp.fc1.weight"] = weights["encoder.layer.3.mlp.fc1.weight"][:-1].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("verb", ["inspect", "calibrate", "apply", "visualize", "evaluate"])
def test_every_verb_refuses_weights_that_did_not_load(damaged, calibration, pictures, tmp_path, verb):
    found = ("--calibration", calibration)
    arguments = {
        "inspect": (),
        "calibrate": ("--dataset", pictures, "--output", tmp_path / "out"),
        "apply": (*found, "--force", "--output", tmp_path / "out"),
        "visualize": (photograph_paths()[0], *found, "--output", tmp_path / "out"),
        "evaluate": ("--task", "segmentation", "--dataset", pictures, *found, "--output", tmp_path / "out"),
    }[verb]
    ended = run(verb, damaged, *arguments)
    assert ended.code == 1, ended.out
    if verb != "evaluate":  # which reads its data set first
        assert "must hold all weights of a Dinov2Model, but " in ended.err
        assert "are missing or of another shape, and would be random" in ended.err
    assert not (tmp_path / "out").exists()
