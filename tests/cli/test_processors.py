"""A processor that cuts photographs into several views (LLaVA-NeXT) serves in every verb that reads photographs."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from outer_models import IMAGE_TOKEN, LLAMA
from PIL import Image
from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration, LlavaNextImageProcessorPil

from ttreg_hf.calibration.calibration_result import CalibrationResult
from ttreg_hf.planted import planted_model, synthetic_images

from .conftest import SIZE, succeed


@pytest.fixture(scope="module")
def chain(tmp_path_factory) -> SimpleNamespace:
    """A LLaVA-NeXT with a planted tower, photographs, their calibration, and a checkpoint."""
    folder = tmp_path_factory.mktemp("llava-next")
    planted = planted_model("clip_vision_model")
    fields = {"image_token_index": IMAGE_TOKEN, "image_grid_pinpoints": [[SIZE, 2 * SIZE], [2 * SIZE, SIZE]]}
    config = LlavaNextConfig(vision_config=planted.model.config.to_dict(), text_config=LLAMA, **fields)
    model = LlavaNextForConditionalGeneration(config).eval()
    model.model.vision_tower.load_state_dict(planted.model.state_dict())
    model.save_pretrained(folder / "base")
    LlavaNextImageProcessorPil(
        size={"shortest_edge": SIZE},
        crop_size={"height": SIZE, "width": SIZE},
        image_grid_pinpoints=fields["image_grid_pinpoints"],
        image_mean=[0.5] * 3,
        image_std=[0.25] * 3,
    ).save_pretrained(folder / "base")
    write_photographs(folder / "images")
    settings = ("--norm-threshold", planted.norm_threshold, "--last-layer", 3, "--top-k", 2)
    succeed("calibrate", folder / "base", "--dataset", folder / "images", "--output", folder / "found", *settings)
    succeed("apply", folder / "base", "--calibration", folder / "found", "--output", folder / "ck")
    return SimpleNamespace(folder=folder, planted=planted)


def write_photographs(folder: Path) -> None:
    """In two classes, for those that want labels."""
    arrays = ((synthetic_images(48, seed=99) * 0.25 + 0.5).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1)
    for place, array in enumerate(arrays):
        path = folder / ("train", "test")[place % 2] / ("a", "b")[place // 2 % 2] / f"{place:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array.contiguous().numpy()).save(path)


def test_calibrate_finds_what_was_planted_in_whole_photographs(chain):
    found = CalibrationResult.load(chain.folder / "found")
    assert {(n.layer, n.neuron) for n in found.register_neurons} == {
        (n.layer, n.neuron) for n in chain.planted.register_neurons
    }
    assert found.provenance.image_size == (SIZE, SIZE)
    assert (chain.folder / "found" / "report.html").is_file()


def test_inspect_reads_them(chain):
    told = json.loads(succeed("inspect", chain.folder / "base", "--dataset", chain.folder / "images", "--json").out)
    assert told["num_images"] == 48


def test_visualize_reads_them(chain, tmp_path):
    image = next((chain.folder / "images").rglob("*.png"))
    succeed("visualize", chain.folder / "base", image, "--calibration", chain.folder / "found", "--output", tmp_path)
    assert (tmp_path / image.name).is_file()


@pytest.mark.parametrize("task", ["knn", "token-probe"])
def test_evaluate_reads_them(chain, task, tmp_path):
    splits = ("--dataset", chain.folder / "images", "--train-split", "train", "--split", "test")
    ended = succeed("evaluate", chain.folder / "ck", "--task", task, *splits, "--output", tmp_path, "--json")
    told = json.loads(ended.out)
    assert (told["num_images"], told["num_training_images"]) == (24, 24)
