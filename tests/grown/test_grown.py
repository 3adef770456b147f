"""Artifacts that gradient descent put into a tiny model: found by a calibration, and taken away again."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from benchmarks import grown as command
from benchmarks.growing import grow, random_crops
from benchmarks.grown_judging import Judgement, calibrated, models_of, outliers_an_image, rows_of
from benchmarks.grown_photographs import Crops, crops_to_calibrate, crops_to_report, squares_to_grow
from benchmarks.grown_table import CAPTION, table
from benchmarks.grown_variants import VARIANTS
from PIL import Image

from .conftest import SIZE, TINY


@torch.no_grad()
def _ratio(model, images) -> float:
    """Largest over median patch norm, where it is largest of all blocks."""
    states = model(images, output_hidden_states=True).hidden_states[1:]
    norms = [state[:, 1:].norm(dim=-1) for state in states]
    return max(float(each.amax(1).mean() / each.median()) for each in norms)


@pytest.fixture(scope="module")
def found(grown, tmp_path_factory):
    folder = tmp_path_factory.mktemp("calibration")
    crops = Crops(grown.images, torch.arange(len(grown.images)))
    return calibrated(grown.grown, crops, folder, seed=0)[0]


def test_outliers_grow_and_the_features_stay(grown):
    assert _ratio(grown.original, grown.images) < 4
    assert _ratio(grown.grown, grown.images) > 6
    with torch.no_grad():
        before, after = (model(grown.images).last_hidden_state[:, 0] for model in (grown.original, grown.grown))
    assert F.cosine_similarity(before, after).mean() > 0.98


def test_neurons_that_nobody_wired_are_found_and_the_original_comes_back(grown, found):
    assert found.register_neurons
    assert found.verdict != "clean"  # a tiny random model may lose as little by zeroing them: then it is not `fixed`
    crops = Crops(grown.images, torch.arange(len(grown.images)) // 8)
    rows = {row.model: row for row in rows_of(grown.original, models_of(grown.grown, found)[0], found, crops)}
    assert outliers_an_image(grown.grown, found, crops) > 0.5
    assert rows["base"].outlier_ratio == (1.0, 1.0, 1.0)
    assert rows["patched"].outlier_ratio[0] < 0.1
    assert rows["random neurons"].outlier_ratio[0] > 0.5
    low, high = rows["patched"].distances["ordinary patches"][1:]
    assert low <= rows["patched"].distances["ordinary patches"][0] <= high
    assert rows["patched"].distances["CLS"][0] < 0.1


def test_growing_is_decided_by_the_seed_and_leaves_the_original_alone(original, textures):
    before = {name: value.clone() for name, value in original.state_dict().items()}
    one, again, other = (
        grow(original, textures, TINY, steps=2, seed=seed, learning_rate=1e-3).state_dict() for seed in (0, 0, 1)
    )
    assert all(torch.equal(original.state_dict()[name], value) for name, value in before.items())
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", ["mlps", "all", "attention"])
def test_a_variant_changes_only_what_it_may(original, textures, name):
    before = original.state_dict()
    variant = VARIANTS[name].__class__(**{**vars(TINY), "trained": VARIANTS[name].trained})
    after = grow(original, textures, variant, steps=2, learning_rate=1e-3).state_dict()
    changed = {key for key in after if not torch.equal(after[key], before[key])}
    mlps = {key for key in changed if ".mlp." in key}
    if name == "attention":
        assert changed
        assert not mlps
    else:
        assert mlps
        early = {key for key in changed if key.startswith(("embeddings", "encoder.layer.0.")) and ".mlp." not in key}
        assert bool(early) == (name == "all")


def test_crops_are_normalised_and_decided_by_the_generator(textures):
    one, again = (random_crops(textures, 5, 56, torch.Generator().manual_seed(1)) for _ in range(2))
    assert one.shape == (5, 3, 56, 56)
    assert torch.equal(one, again)
    assert one.abs().max() < 3


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """One photograph to grow with, two to calibrate and two to report on, each of its own shade."""
    for place, name in enumerate(("grow/a", "calibrate/b", "calibrate/c", "report/d", "report/e")):
        path = tmp_path / f"{name}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (200, 100), (50 * place,) * 3).save(path)
    return tmp_path


def test_crops_to_calibrate_know_their_photograph_and_are_of_no_other_split(photographs):
    crops = crops_to_calibrate(photographs, SIZE, 6, seed=0)
    assert crops.photographs.tolist() == [0, 1] * 3
    shades = [round(float(crop.mean()), 1) for crop in crops.pixels]
    assert shades[::2] != shades[1::2]
    reported = {round(float(crop.mean()), 1) for crop in crops_to_report(photographs, SIZE, each=1).pixels}
    assert reported.isdisjoint(shades)


def test_a_wide_photograph_gives_three_squares_and_reported_crops_know_theirs(photographs):
    assert squares_to_grow(photographs, SIZE).shape == (3, 3, 168, 168)
    crops = crops_to_report(photographs, SIZE, each=3)
    assert crops.photographs.tolist() == [0, 1] * 3
    assert len({round(float(crop.mean()), 1) for crop in crops.pixels[::2]}) == 1


def test_missing_photographs_are_one_message(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"Photographs to grow are JPEG files in .*grow, but there is none"):
        squares_to_grow(tmp_path, SIZE)


def test_the_table_says_what_it_does_not_show_and_has_a_line_a_model():
    judged = Judgement(
        "mlps", 1, ("fixed",), "clean", (), {}, None, None, 0.0, (), {"constant mode": "none"}, {"growing": 1.0}
    )
    text = table([json.loads(judged.to_json())])
    assert text.startswith(CAPTION)
    assert "| mlps | 1 | clean | no |" in text
    assert text.endswith("mlps, 1: no row constant mode: none.\n")


def test_a_job_goes_on_where_it_ended(tmp_path, monkeypatch):
    """Grown and judged already: nothing but the table is left."""
    judged = Judgement("mlps", 0, ("fixed",), "fixed", (), {"7": 2}, 1.0, 8, 3.0, (), {}, {"growing": 1.0})
    (tmp_path / "mlps-0").mkdir()
    (tmp_path / "mlps-0" / "result.json").write_text(judged.to_json())
    monkeypatch.setattr(command, "_run_all", lambda jobs, processes: True)
    command.grown_artifacts(tmp_path, tmp_path, tmp_path, variant=["mlps"], seed=[0], device="cpu")
    assert "| mlps | 0 | fixed | yes | 7: 2 |" in (tmp_path / "grown.md").read_text(encoding="utf-8")
