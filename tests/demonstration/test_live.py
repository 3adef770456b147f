"""The live demonstration, as a browser and as a crowd see it: one server for all, stopped by the last test."""

import io
import json
import re
import statistics
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import numpy as np
import pytest
from benchmarks.chromium import chromium
from benchmarks.demo_in_browser import seconds_of_changes
from browser import needs_browser, needs_gradio
from PIL import Image
from transformers import BitImageProcessorPil

from ttreg_hf.demonstration.live import gradio_version
from ttreg_hf.images.photographs import photograph_paths
from ttreg_hf.publishing.checkpoint import save_checkpoint

from .live_server import published_and_running

pytestmark = [needs_browser, needs_gradio]
CAT = next(path for path in photograph_paths() if path.stem == "cat")
MOST_SECONDS = 0.5  # for a change, once a picture is computed


@pytest.fixture(scope="module")
def server(shown, tmp_path_factory):
    folder = tmp_path_factory.mktemp("live")
    processor = BitImageProcessorPil(
        size={"shortest_edge": 112}, crop_size={"height": 112, "width": 112}, do_center_crop=True
    )
    save_checkpoint(shown.patched, folder / "publisher" / "checkpoint", processor=processor)
    with published_and_running(folder / "publisher", folder / "server") as running:
        yield running


@pytest.fixture(scope="module")
def browser():
    with chromium() as opened:
        yield opened


@pytest.fixture
def visitor(browser, server):
    """Opens the page in a session of its own, and keeps what it asks for."""
    contexts = []

    def visit(width=1280):
        context = browser.new_context(viewport={"width": width, "height": 844})
        contexts.append(context)
        asked = []
        context.on("request", lambda request: asked.append(request.url))
        page = context.new_page()
        page.goto(server.address)
        page.wait_for_selector("input[type=file]", state="attached")
        return page, asked

    yield visit
    for context in contexts:
        context.close()


def give(page, picture):
    """The frame that shows a picture, once it is computed."""
    page.set_input_files("input[type=file]", picture)
    frame = page.frame_locator("#page iframe")
    frame.locator("#words").wait_for(timeout=60_000)
    return frame


def elsewhere(asked, server):
    """Requests to other hosts; what has no host is in the page already."""
    return [url for url in asked if urlsplit(url).netloc not in ("", urlsplit(server.address).netloc)]


def test_an_uploaded_picture_is_shown_and_every_control_answers_without_the_server(server, visitor):
    page, asked = visitor()
    frame = give(page, CAT)
    asked_before = len(asked)
    told = {
        "zeroed": "Control: the same 3 neurons zeroed on the patches, not moved.",
        "random": "Control: 3 neurons of the same layers, drawn at random, moved to the register.",
        "base": "The base model.",
    }
    for value, words in told.items():
        frame.locator(f'input[name="show"][value="{value}"]').check(force=True)  # its label lies over it
        assert frame.locator("#words").inner_text() == words
    frame.locator('input[name="moved"]').press("End")
    assert frame.locator("#words").inner_text() == "3 neurons moved to the register, strongest first."
    mark = frame.locator("#norms + .patch")
    before = mark.get_attribute("style")
    frame.locator(".frame", has=frame.locator("#norms")).click(position={"x": 3, "y": 3})
    assert mark.get_attribute("style") != before
    assert "left: 0%; top: 0%" in mark.get_attribute("style")
    frame.get_by_text("Try the switch").click()  # a link within the page stays in the frame
    assert frame.locator("#words").inner_text().startswith("3 neurons")
    seconds = seconds_of_changes(page.locator("#page iframe").element_handle().content_frame())
    assert set(seconds) == {"show", "photo", "slider", "block", "patch"}
    assert max(map(statistics.median, seconds.values())) < MOST_SECONDS, seconds  # a single one may be the machine's
    of_controls = [url for url in asked[asked_before:] if "heartbeat" not in url and urlsplit(url).netloc]
    assert of_controls == []
    assert elsewhere(asked, server) == []


def test_the_policy_keeps_whatever_runs_in_the_page_from_asking_elsewhere(server, visitor):
    page, _ = visitor()
    refused = page.evaluate("""() => new Promise((done) => {
        const refused = [];
        addEventListener("securitypolicyviolation", (event) => {
            if (refused.push(event.blockedURI) === 2) done(refused);
        });
        setTimeout(() => done(refused), 10_000);
        new Image().src = "http://192.0.2.1/image";
        fetch("http://192.0.2.1/fetch").catch(() => {});
    })""")
    assert sorted(refused) == ["http://192.0.2.1/fetch", "http://192.0.2.1/image"]
    with urllib.request.urlopen(server.address) as answer:
        text = answer.read().decode()
    assert not re.search(r'<(?:script|link|img|iframe)[^>]+(?:src|href)="(?:https?:)?//', text)


def test_it_is_as_wide_as_a_phone(visitor):
    page, _ = visitor(width=390)
    frame = give(page, CAT)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert frame.locator(":root").evaluate("(root) => root.scrollWidth <= innerWidth")
    assert frame.locator(":root").evaluate("() => innerWidth") >= 370
    for controls in ("select", "input[type=range]", ".modes label"):  # as high as a finger is wide
        assert all(control.bounding_box()["height"] >= 40 for control in frame.locator(controls).all()), controls


def test_another_session_does_not_see_the_picture(visitor):
    first, _ = visitor()
    give(first, CAT)
    second, _ = visitor()
    second.wait_for_timeout(500)
    assert second.locator("#page iframe").count() == 0
    assert second.locator("img[src*='file=']").count() == 0
    assert first.locator("img[src*='file=']").count() > 0  # the check can fail


def test_files_that_are_no_pictures_are_told_and_the_next_picture_is_shown(visitor, tmp_path):
    page, _ = visitor()
    (tmp_path / "notes.jpg").write_text("no picture")
    page.set_input_files("input[type=file]", tmp_path / "notes.jpg")
    told = page.get_by_text("notes.jpg is not an image that Pillow can read.")
    told.wait_for()
    page.get_by_label("Clear").or_(page.get_by_label("Remove")).first.click()
    large = tmp_path / "large.jpg"
    Image.new("RGB", (8000, 5000), "olive").save(large)
    frame = give(page, large)
    assert frame.locator("#words").inner_text() == "The base model."


class Crowd:
    """Visitors without a browser."""

    def __init__(self, address):
        self.address = address

    def upload(self, name, content):
        head = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n'
        body = head.encode() + b"Content-Type: application/octet-stream\r\n\r\n" + content + b"\r\n--x--\r\n"
        return self._ask("gradio_api/upload", body, "multipart/form-data; boundary=x")[0]

    def give(self, visitor, path):
        """What is answered: the page, or the message."""
        payload = {"path": path, "meta": {"_type": "gradio.FileData"}, "orig_name": path.rsplit("/", 1)[-1]}
        asked = {"data": [payload], "fn_index": 0, "session_hash": visitor, "trigger_id": None, "event_data": None}
        try:
            self._ask("gradio_api/queue/join", json.dumps(asked).encode(), "application/json")
        except urllib.error.HTTPError as error:
            return error.read().decode()
        with urllib.request.urlopen(f"{self.address}gradio_api/queue/data?session_hash={visitor}") as events:
            for line in events:
                if b"process_completed" in line:
                    output = json.loads(line.removeprefix(b"data: "))["output"]
                    return str(output.get("data") or output.get("error"))
        return "no answer"

    def _ask(self, path, body, kind):
        request = urllib.request.Request(self.address + path, body, {"Content-Type": kind})
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)


def test_twenty_at_once_get_their_pages_or_are_told_that_it_is_full(server, visitor):
    crowd, count = Crowd(server.address), 20
    path = crowd.upload("cat.jpg", CAT.read_bytes())
    start = threading.Barrier(count)

    def one(number):
        start.wait()
        return crowd.give(f"visitor{number}", path)

    with ThreadPoolExecutor(count) as pool:
        answers = list(pool.map(one, range(count)))
    shown = [answer for answer in answers if "<iframe" in answer]
    full = [answer for answer in answers if "Queue is full" in answer]
    assert len(shown) + len(full) == count, [answer[:300] for answer in answers if answer not in shown]
    assert len(shown) >= 10
    page, _ = visitor()
    give(page, CAT)


def test_files_of_the_machine_cannot_be_asked_for(server):
    crowd = Crowd(server.address)
    assert "<iframe" not in crowd.give("thief", str(CAT))
    assert crowd.give("text", crowd.upload("a.txt", b"text")) == (
        "a.txt is not an image that Pillow can read. Remove it, or convert it to PNG or JPEG."
    )
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    assert "<iframe" in crowd.give("cut", crowd.upload("noise.png", buffer.getvalue()))


def test_the_space_is_pinned_and_says_what_it_is(server):
    assert [server.told[name]["code"] for name in ("dry", "live", "again")] == [0, 0, 0], server.told
    assert "dry run: nothing was sent to org/live" in server.told["dry"]["out"]
    assert "unchanged" in server.told["again"]["out"]
    card = server.space["README.md"].decode()
    for line in ("sdk: gradio", f"sdk_version: {gradio_version()}", "app_file: app.py", "- org/vit"):
        assert line in card
    assert "Pictures go to this Space and nowhere else" in card


def test_nothing_remains_after_it_was_stopped(server):
    crowd = Crowd(server.address)
    crowd.give("last", crowd.upload("cat.jpg", CAT.read_bytes()))
    assert any(name.endswith("cat.jpg") for name in server.files("temporary"))
    assert server.files("home") == set()
    assert server.files("space") == {"space/app.py"}
    assert server.stop() == 0
    assert server.files("temporary") == set()
