"""Calibrate, apply and visualize on models that take other inputs: SigLIP 2's patches, and images with texts."""

import shutil
from types import SimpleNamespace

import pytest
from families import TINY_TEXT
from PIL import Image
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    Siglip2ImageProcessorPil,
)

from ttreg_hf.calibration.calibration_result import CalibrationResult
from ttreg_hf.planted import planted_model, synthetic_images
from ttreg_hf.publishing.output_check import check_outputs

from .conftest import SIZE, succeed

SIZES = [(SIZE, SIZE), (SIZE, 70), (56, SIZE), (84, 98)]
PIXELS = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3}


def _siglip2(folder):
    """Its processor keeps proportions and pads; the config has no image size."""
    planted = planted_model("siglip2_vision_model")
    del planted.model.config.image_size
    planted.model.save_pretrained(folder)
    Siglip2ImageProcessorPil(patch_size=14, max_num_patches=64, **PIXELS).save_pretrained(folder)
    return planted


def _clip(folder):
    """Both towers, and a processor whose tokenizer knows one letter."""
    planted = planted_model("clip_vision_model")
    config = CLIPConfig(vision_config=planted.model.config.to_dict(), text_config=TINY_TEXT)
    model = CLIPModel(config).eval()
    model.vision_model.load_state_dict(planted.model.state_dict())
    model.save_pretrained(folder)
    vocabulary = {"<|startoftext|>": 0, "<|pad|>": 1, "a</w>": 2, "<|endoftext|>": 19}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=8, pad_token="<|pad|>")
    CLIPProcessor(
        CLIPImageProcessorPil(size={"height": SIZE, "width": SIZE}, do_center_crop=False, **PIXELS), tokenizer
    ).save_pretrained(folder)
    return planted


@pytest.fixture(scope="module", params=[_siglip2, _clip], ids=["siglip2", "clip"])
def chain(request, tmp_path_factory):
    """A planted checkpoint, its calibration on images of several sizes (where it takes such), and its patched twin."""
    folder = tmp_path_factory.mktemp("chain")
    planted = request.param(folder / "base")
    (folder / "images").mkdir()
    arrays = ((synthetic_images(24, seed=99) * 0.25 + 0.5).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1)
    for place, array in enumerate(arrays):
        height, width = SIZES[place % 4] if request.param is _siglip2 else SIZES[0]
        image = Image.fromarray(array[:height, :width].contiguous().numpy())
        image.save(folder / "images" / f"{place:02d}.png")
    settings = ("--norm-threshold", planted.norm_threshold, "--last-layer", 3, "--top-k", 2)
    succeed("calibrate", folder / "base", "--dataset", folder / "images", "--output", folder / "found", *settings)
    shutil.copy(folder / "images" / "06.png", folder / "my.jpg")
    return SimpleNamespace(folder=folder, planted=planted, result=CalibrationResult.load(folder / "found"))


def test_calibrating_a_folder_finds_what_was_planted(chain):
    found, truth = (
        {(each.layer, each.neuron) for each in one.register_neurons} for one in (chain.result, chain.planted)
    )
    assert found == truth
    assert chain.result.verdict == "fixed"


def test_the_checkpoint_is_loaded_by_the_lines_that_are_printed_and_verified(chain, monkeypatch):
    monkeypatch.chdir(chain.folder)
    out = succeed("apply", chain.folder / "base", "--calibration", "found", "--output", "ck").out
    scope: dict = {}
    exec("\n".join(line.strip() for line in out.partition("To load it:\n")[2].splitlines()), scope)
    reads_text = "scores" in scope
    assert reads_text == ("CLIP" in type(scope["model"]).__name__)
    assert scope["scores"].shape == (1, 2) if reads_text else scope["features"].shape == (1, 64, 64)
    assert check_outputs(chain.folder / "ck") < 1e-4


def test_pictures_show_an_image_in_its_own_proportions(chain, tmp_path, monkeypatch):
    from ttreg_hf.pictures import visualization

    seen = []
    plot = visualization.plot_before_after
    monkeypatch.setattr(
        visualization, "plot_before_after", lambda *args, **rest: seen.append(args) or plot(*args, **rest)
    )
    images = [chain.folder / "images" / f"{place:02d}.png" for place in range(1, 5)]
    neuron = "{0.layer}/{0.neuron}".format(chain.planted.register_neurons[0])
    arguments = ("--calibration", chain.folder / "found", "--output", tmp_path, "--neuron", neuron)
    succeed("visualize", chain.folder / "base", *images, *arguments)
    for image, (photo, before, after) in zip(images, seen, strict=True):
        with Image.open(image) as original:
            proportions = original.width / original.height
        grid = (photo.shape[0] // 14, photo.shape[1] // 14)
        assert grid[1] / grid[0] == pytest.approx(proportions, rel=0.15)  # to whole patches
        assert before.patch_norms.shape == after.features.shape[:2] == before.neuron_activation.shape == grid
    largest = [max(float(maps[row].patch_norms.max()) for maps in seen) for row in (1, 2)]
    assert largest[0] > chain.planted.norm_threshold > largest[1]
