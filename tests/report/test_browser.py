"""The neuron switch in a browser: what moving the slider changes, and what it leaves alone."""

import html
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from browser import add_script, browse, needs_browser, shown
from PIL import Image

from ttreg_hf.report.neuron_switch import State

pytestmark = needs_browser
WINDOW = ("--window-size=1200,1000",)
MOVES_THE_SLIDER = """
const slider = document.querySelector('input[type="range"]');
slider.value = 2;
slider.dispatchEvent(new Event("input", {bubbles: true}));
"""
BOXES = """
const boxes = ["photograph", "norms", "attention"].map((id) => document.getElementById(id).getBoundingClientRect());
document.body.dataset.boxes = JSON.stringify(boxes.map((box) => [box.left, box.top, box.right, box.bottom]));
"""


def picture(page: Path, fragment: str) -> np.ndarray:
    path = page.parent / f"{len(list(page.parent.glob('*.png')))}.png"
    browse(page, *WINDOW, f"--screenshot={path}", fragment=fragment)
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


@pytest.fixture
def page(reported, tmp_path):
    return Path(shutil.copy(reported.folder / "report.html", tmp_path / "report.html"))


def test_slider_moves_numbers_and_maps_and_leaves_the_photograph(reported, page):
    photograph, threshold = reported.switch.photographs[1], reported.result.norms.norm_threshold
    outliers = (photograph.norms_SLhw > threshold).flatten(1).sum(1).tolist()

    before = shown(browse(page, "--dump-dom", fragment="#photo=1&show=base"))
    assert before["outliers"] == f"{outliers[0]} of 64"
    assert before["on_register"] == "0.00 %"
    assert before["words"] == "The base model."

    add_script(page, MOVES_THE_SLIDER)
    dom = browse(page, "--dump-dom", fragment="#photo=1&show=base&moved=0")
    after = shown(dom)
    assert after["count"] == "2"
    assert after["words"] == "2 neurons moved to the register, strongest first."
    (place,) = [place for place, state in enumerate(reported.switch.states) if state == State("moved", 2)]
    assert after["outliers"] == f"{outliers[place]} of 64"
    assert after["on_register"] == f"{100 * float(photograph.on_register_SA[place, 0]):.2f} %"
    assert 'aria-valuetext="2 of 3 neurons"' in dom


def test_constant_mode_is_a_state_without_a_register(reported, page):
    place = reported.switch.states.index(State("constant", 3))
    found = shown(browse(page, "--dump-dom", fragment="#photo=1&show=constant"))
    photograph, threshold = reported.switch.photographs[1], reported.result.norms.norm_threshold
    assert found["words"].startswith("Constant mode: the same 3 neurons zeroed on the patches; no token")
    assert found["outliers"] == f"{int((photograph.norms_SLhw[place] > threshold).sum())} of 64"
    assert found["on_register"] == "0.00 %"


def test_pictures_of_two_states_differ_in_the_maps_alone(page):
    add_script(page, BOXES)
    boxes = json.loads(html.unescape(re.search(r'data-boxes="([^"]*)"', browse(page, *WINDOW, "--dump-dom"))[1]))
    base, moved = (picture(page, f"#photo=0&show={state}") for state in ("base", "moved&moved=3"))
    changed = (base != moved).any(-1)
    parts = [changed[round(top) : round(bottom), round(left) : round(right)] for left, top, right, bottom in boxes]
    assert all(part.size > 200 * 200 for part in parts)
    assert [bool(part.any()) for part in parts] == [False, True, True]


def test_nothing_is_wider_than_a_phone(page):
    add_script(page, "document.body.dataset.width = document.documentElement.scrollWidth;")
    dom = browse(page, "--window-size=400,900", "--dump-dom", fragment="#photo=0&show=moved&moved=3")
    width = int(re.search(r'data-width="(\d+)"', dom)[1])
    assert width <= 500  # the narrowest window that headless Chromium opens
