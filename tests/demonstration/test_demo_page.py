"""The demonstration in a browser: what its controls change, how wide it is on a phone, and that it keeps to itself."""

import html
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
from browser import add_script, browse, needs_browser
from browser import shown as texts
from matplotlib import colormaps
from PIL import Image

from .conftest import LAYER

pytestmark = needs_browser
PIXELS = """
const pixels = {};
for (const canvas of document.querySelectorAll("form canvas[data-map]"))
  pixels[canvas.id] = [...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data];
document.body.dataset.pixels = JSON.stringify(pixels);
"""
CLICKS_A_PATCH = """
const frame = document.getElementById("norms").parentElement;
const box = frame.getBoundingClientRect();
const at = {bubbles: true, clientX: box.left + 0.4 * box.width, clientY: box.top + 0.9 * box.height};
frame.dispatchEvent(new MouseEvent("click", at));
"""
PRESSES_A_KEY = """
const press = new KeyboardEvent("keydown", {key: "ArrowUp", bubbles: true});
document.getElementById("norms").parentElement.dispatchEvent(press);
"""
TELLS_ITS_ADDRESS = "document.body.dataset.address = location.hash;"
TELLS_ITS_WIDTH = (
    'parent.postMessage([document.documentElement.scrollWidth, document.getElementById("words").textContent], "*");'
)
ASKS_OUTSIDE = """
new Image().src = "http://127.0.0.1:PORT/image";
fetch("http://127.0.0.1:PORT/fetch").catch(() => {});
navigator.sendBeacon("http://127.0.0.1:PORT/beacon", "x");
const script = document.createElement("script");
script.src = "http://127.0.0.1:PORT/script";
document.head.append(script);
"""


def told(dom: str, name: str) -> str:
    return html.unescape(re.search(rf'data-{name}="([^"]*)"', dom)[1])


def levels(pixels: list[int], colour_map: str) -> np.ndarray:
    """The level 0 to 255 of each pixel, by its colour."""
    colours = (255 * colormaps[colour_map](np.arange(256))[:, :3]).round()
    seen = np.array(pixels).reshape(-1, 1, 4)[..., :3]
    return np.abs(seen - colours).sum(-1).argmin(1)


def drawn(page: Path, fragment: str) -> dict[str, list[int]]:
    add_script(page, PIXELS)
    return json.loads(told(browse(page, "--dump-dom", fragment=fragment), "pixels"))


def test_numbers_are_those_of_the_state_block_and_photograph_that_were_chosen(shown, page):
    photograph = shown.demo.switch.photographs[1]
    dom = browse(page, "--dump-dom", fragment="#photo=1&show=moved&moved=3&norms=1&attention=4")
    told = texts(dom)
    assert told["words"] == "3 neurons moved to the register, strongest first."
    assert told["largest_norm"] == f"{float(photograph.norms_SLhw[-1, 1].max()):.3g}"
    assert told["largest_attention"] == f"{100 * float(photograph.attention_SAhw[-1, 4].max()):.2f} %"
    assert told["on_register"] == f"{100 * float(photograph.on_register_SA[-1, 4]):.2f} %"
    assert told["similarity"] == f"{float(photograph.similarity_S[-1]):.4f}"
    assert told["outliers"] == "0 of 64"
    step = re.search(r'<dd data-note="outliers" data-state="base">([^<]*)<', dom)[1]
    assert step == f"{int((photograph.norms_SLhw[0, LAYER] > 20).sum())} of 64"


def test_maps_are_drawn_in_their_colours(shown, page):
    photograph = shown.demo.switch.photographs[1]
    pixels = drawn(page, "#photo=1&show=zeroed&norms=0&patch=17")
    norms = photograph.norms_SLhw[1, 0].flatten()
    assert np.array_equal(np.argsort(levels(pixels["norms"], "magma"))[-1], norms.argmax())
    colours = np.array(pixels["colours"]).reshape(-1, 4)[:, :3]
    assert np.array_equal(colours, photograph.colours_Shw3[1].flatten(0, 1).numpy())
    for name, state in (("similarity-before", 0), ("similarity-now", 1)):
        unit = photograph.directions_ShwK[state].flatten(0, 1)
        cosines = levels(pixels[name], "RdBu_r") / 127.5 - 1
        assert np.abs(cosines - (unit @ unit[17]).numpy()).max() < 0.03


def test_a_click_marks_a_patch(page):
    add_script(page, CLICKS_A_PATCH + TELLS_ITS_ADDRESS)
    assert told(browse(page, "--dump-dom"), "address").endswith("&patch=59")  # row 7, column 3 of 8 x 8


def test_an_arrow_key_moves_the_mark_and_stops_at_the_edge(page):
    add_script(page, 3 * f"{{{PRESSES_A_KEY}}}" + TELLS_ITS_ADDRESS)
    assert told(browse(page, "--dump-dom", fragment="#patch=19"), "address").endswith("&patch=3")


def test_pictures_of_two_states_differ(page):
    pictures = []
    for fragment in ("show=base", "show=moved&moved=3"):
        path = page.parent / f"{len(pictures)}.png"
        browse(page, "--window-size=1280,3400", f"--screenshot={path}", fragment=f"#{fragment}")
        pictures.append(np.asarray(Image.open(path).convert("RGB")).astype(int))
    changed = (pictures[0] != pictures[1]).any(-1)
    assert changed.any()
    assert not changed[:1000].any()  # the steps stay as they are


def test_a_notebook_shows_it_as_wide_as_a_phone_without_anything_cut(shown, tmp_path):
    whole = shown.demo.html.replace("</body>", f"<script>{TELLS_ITS_WIDTH}</script></body>")
    made = type(shown.demo)("toy", whole, shown.demo.switch, None, None)
    page = tmp_path / "notebook.html"
    page.write_text(
        '<body style="margin: 0; width: 390px"><script>addEventListener("message", (event) => '
        "document.body.dataset.told = JSON.stringify(event.data));</script>" + made._repr_html_() + "</body>",
        encoding="utf-8",
    )
    width, words = json.loads(told(browse(page, "--dump-dom"), "told"))
    assert width == 390
    assert words == "The base model."


@pytest.fixture
def outside():
    """A server on this machine, and the paths that it was asked for."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(204)
            self.end_headers()

        do_POST = do_GET

        def log_message(self, format, *args):
            """Nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port, asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_no_request_leaves_whatever_runs_in_the_page(page, outside):
    port, asked = outside
    add_script(page, ASKS_OUTSIDE.replace("PORT", str(port)))
    browse(page, "--dump-dom")
    assert asked == []
    text = page.read_text(encoding="utf-8")
    page.write_text(text.replace("Content-Security-Policy", "nothing"), encoding="utf-8")
    browse(page, "--dump-dom")
    assert {"/image", "/script"} <= set(asked)  # the check can fail
