"""What a demonstration records and writes: the model in every state and block, and no markup from outside."""

import html
import json
import re

import pytest
import torch
from families import BARE_CASES
from PIL import Image

import ttreg_hf
from ttreg_hf.applying import add_test_time_registers
from ttreg_hf.demonstration.demo import demo, show
from ttreg_hf.demonstration.demo_page import Shown, render_demo
from ttreg_hf.measuring.image_maps import MapRecorder, image_maps
from ttreg_hf.planted import PLANTED_NOTE
from ttreg_hf.report.neuron_switch import State, directions

from .conftest import LAYER, THRESHOLD, marked

EVIL = "<img src=x onerror=alert(1)>"


def data_of(page: str) -> dict:
    return json.loads(re.search(r'id="switch-data">(.*?)</script>', page, re.DOTALL)[1])


def text_of(page: str) -> str:
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page)))


def test_the_name_is_the_function_whatever_was_imported_before():
    assert ttreg_hf.demo is demo


def test_states_are_base_controls_and_every_number_of_neurons(shown):
    moved = [State("moved", count) for count in (1, 2, 3)]
    assert shown.demo.switch.states == (State("base", 0), State("zeroed", 3), State("random", 3), *moved)


@pytest.mark.parametrize("layer", range(6))
def test_every_block_is_that_of_the_base_model_first_and_of_the_patched_model_last(shown, layer):
    for image, photograph in zip(shown.images, shown.demo.switch.photographs, strict=True):
        for state, model in ((0, shown.base), (-1, shown.patched)):
            (maps,) = image_maps(model, image[None], detection_layer=layer)
            torch.testing.assert_close(photograph.norms_SLhw[state, layer], maps.patch_norms)
            if layer == 5:
                torch.testing.assert_close(photograph.attention_SAhw[state, layer], maps.attention)
                assert float(photograph.on_register_SA[state, layer]) == pytest.approx(maps.register_attention or 0)


@pytest.mark.parametrize(
    "options", [{"shift_value": "per_layer"}, {"shift_fill": "mean"}, {"num_test_time_registers": 3}]
)
def test_the_last_state_is_the_patched_model_with_its_own_options(shown, options):
    patched = add_test_time_registers(shown.base, shown.patched.config.register_neurons, **options)
    photograph = demo(patched, shown.images[0]).switch.photographs[0]
    with MapRecorder(patched, detection_layer=0, every_block=True) as maps_of:
        (maps,) = maps_of(shown.images[0][None])
    torch.testing.assert_close(photograph.norms_SLhw[-1], maps.blocks.norms_Lhw)
    torch.testing.assert_close(photograph.attention_SAhw[-1], maps.blocks.attention_Lhw)
    torch.testing.assert_close(photograph.on_register_SA[-1], maps.blocks.on_register_L)
    first = shown.demo.switch.photographs[0]
    assert not torch.equal(photograph.attention_SAhw[-1], first.attention_SAhw[-1])


def test_a_stock_model_with_neurons_shows_what_the_patched_one_shows(shown):
    neurons = shown.patched.config.register_neurons
    made = show(marked(shown.base, neurons), shown.images)
    assert data_of(made.html) == data_of(shown.demo.html)


def test_similarity_of_the_feature_is_one_in_the_base_model_and_measured_in_others(shown):
    for photograph in shown.demo.switch.photographs:
        assert float(photograph.similarity_S[0]) == pytest.approx(1)
        assert -1 <= float(photograph.similarity_S[1:].min()) < 1


def test_dot_products_of_directions_are_cosines():
    features = [torch.randn(3, 4, 40), torch.randn(3, 4, 40)]
    found = directions(features).flatten(0, 2)
    flat = torch.nn.functional.normalize(torch.stack(features).flatten(0, 2), dim=-1)
    torch.testing.assert_close(found @ found.T, flat @ flat.T, atol=1e-5, rtol=0)


def test_of_many_channels_the_main_ones_of_all_states_are_kept():
    wide = torch.randn(20, 300) * torch.tensor([10.0] * 30 + [0.2] * 270)
    found = directions([wide.unflatten(0, (4, 5))])
    assert found.shape == (1, 4, 5, 64)
    flat = torch.nn.functional.normalize(wide, dim=-1)
    found = found.flatten(0, 2)
    torch.testing.assert_close(found @ found.T, flat @ flat.T, atol=2e-3, rtol=0)


def test_outliers_are_counted_at_the_detection_block_alone(shown):
    data = data_of(shown.demo.html)
    assert [choice.get("threshold") for choice in data["maps"]["norms"]["choices"]] == [None] * 3 + ["20"] + [None] * 2
    norms = shown.demo.switch.photographs[1].norms_SLhw[0, LAYER]
    assert data["photographs"][1]["states"][0]["notes"]["outliers"] == f"{int((norms > THRESHOLD).sum())} of 64"
    assert int((norms > THRESHOLD).sum()) > 0


def test_mean_over_blocks_is_one_more_choice_of_attention(shown):
    data = data_of(shown.demo.html)
    assert [choice["name"] for choice in data["maps"]["attention"]["choices"]][-2:] == [
        "block 5",
        "mean of all blocks",
    ]
    mean = shown.demo.switch.photographs[0].attention_SAhw[0].mean(0)
    notes = data["photographs"][0]["states"][0]["notes"]
    assert notes["largest_attention"][-1] == f"{100 * float(mean.max()):.2f} %"
    on_register = shown.demo.switch.photographs[0].on_register_SA[-1].mean()
    assert data["photographs"][0]["states"][-1]["notes"]["on_register"][-1] == f"{100 * float(on_register):.2f} %"


def test_without_a_threshold_no_outliers_are_told(shown):
    page = demo(shown.patched, shown.images[0]).html
    assert "patches above" not in text_of(page)
    assert "outliers" not in data_of(page)["photographs"][0]["states"][0]["notes"]


def test_a_model_without_known_neurons_is_shown_as_it_is_with_two_steps(shown):
    made = demo(shown.base, shown.images[0])
    assert made.switch.states == (State("base", 0),)
    assert "No register neurons of this model are known" in text_of(made.html)
    assert made.html.count("<li>") == 2
    assert shown.demo.html.count("<li>") == 5


def test_pictures_without_outliers_are_told(shown):
    told = "there is no fog to lift here"
    assert told not in shown.demo.html
    assert told in show(marked(shown.patched, norm_threshold=1e6), shown.images[:1]).html


def test_a_planted_model_is_named_as_one_and_a_real_one_is_not(shown):
    assert shown.demo.switch.note == PLANTED_NOTE
    assert PLANTED_NOTE in text_of(shown.demo.html)
    case = next(case for case in BARE_CASES if case.family.name == "siglip")
    model = case.stock_model()
    image = torch.randn(3, *[model.config.image_size] * 2)
    made = demo(model, image, [[0, 1]])
    assert made.switch.note == ""
    assert "Attention received" in made.html
    assert "CLS" not in text_of(made.html).replace("switch-data", "")


def test_names_from_outside_stay_text_and_nothing_comes_from_elsewhere(shown):
    page = render_demo(Shown(EVIL, shown.demo.switch, ((1, 2),), 10, None))
    assert "alert(1)" in page
    assert EVIL not in page
    assert "://" not in page
    assert all(source.startswith(("data:", "#")) for source in re.findall(r'(?:src|href)="([^"]*)"', page))


def test_a_hub_id_is_the_title_and_where_files_lie_is_not_told(shown, tmp_path):
    made = demo(shown.patched, shown.images[0], name="org/vit-ttreg")
    assert (made.title, made.checkpoint) == ("vit-ttreg", "org/vit-ttreg")
    made = demo(shown.patched, shown.images[0], name=str(tmp_path))
    assert (made.title, made.checkpoint) == ("Dinov2TTRegModel", None)
    assert str(tmp_path) not in made.html


def test_images_are_checked_before_the_model_runs(shown, tmp_path):
    with pytest.raises(ValueError, match="got an empty list"):
        demo(shown.patched, [])
    text = tmp_path / "notes.jpg"
    text.write_text("no picture")
    with pytest.raises(OSError, match=r"notes\.jpg is not an image"):
        demo("no/such-model", [text])
    with pytest.raises(ValueError, match="need an image processor"):
        demo(shown.patched, Image.new("RGB", (112, 112)))


def test_a_page_replaces_another_only_if_asked(shown, page):
    with pytest.raises(FileExistsError, match="exists and is not empty"):
        shown.demo.save(page.parent)
    page.write_text("old")
    assert shown.demo.save(page.parent, overwrite=True).read_text(encoding="utf-8") == shown.demo.html
    assert [path.name for path in page.parent.glob("[!.]*")] == ["index.html"]
