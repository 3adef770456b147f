"""The demo's page in a browser: seconds from a change to the next painted frame, and a picture for the manual.

Run it through `scripts/benchmark_demo.py`.
"""

import io
import statistics
from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image

from benchmarks.chromium import chromium

_WIDTHS, _HEIGHT = (1060, 390), 1350  # of windows: of a desktop and a phone, in CSS pixels
_SHOWN = "#photo=0&show=moved&moved=1"
_SECONDS_OF_CHANGES = """
async () => {
  const form = document.getElementById("switch"), seconds = {};
  // The first frame after a change has it painted; the second begins when that is done.
  const painted = () => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  async function time(name, change) {
    const start = performance.now();
    change();
    await painted();
    (seconds[name] ??= []).push((performance.now() - start) / 1000);
  }
  const give = (control, value) => {
    control.value = value;
    control.dispatchEvent(new Event("input", {bubbles: true}));
  };
  await painted();
  for (const name of ["show", "photo"])
    for (const button of form.querySelectorAll(`input[name="${name}"]`)) await time(name, () => button.click());
  for (const slider of form.querySelectorAll('input[type="range"]'))
    for (let value = 0; value <= slider.max; value++) await time("slider", () => give(slider, value));
  for (const choice of form.querySelectorAll("select"))
    for (const option of choice.options) await time("block", () => give(choice, option.value));
  for (const map of form.querySelectorAll(".frame"))
    for (const place of [0.1, 0.5, 0.9]) {
      const box = map.getBoundingClientRect(), at = {clientX: box.left + place * box.width, clientY: box.top + 9};
      await time("patch", () => map.dispatchEvent(new MouseEvent("click", {bubbles: true, ...at})));
    }
  return seconds;
}
"""


def seconds_of_changes(page: Any) -> dict[str, list[float]]:
    """Seconds of each change of each control, by its name, to the next painted frame.

    Args:
        page: playwright's page, or frame, that shows the switch.
    """
    return page.evaluate(_SECONDS_OF_CHANGES)


def benchmark(
    page: Annotated[Path, typer.Argument(help="`index.html` of `ttreg demo`.", exists=True, dir_okay=False)],
    picture: Annotated[Path | None, typer.Option(help="PNG to write: the switch at desktop and phone width.")] = None,
) -> None:
    """Change every control of a page and print how long it took: median and longest of each kind."""
    address = page.resolve().as_uri() + _SHOWN
    with chromium() as browser:
        view = browser.new_page()
        view.goto(address)
        for name, seconds in seconds_of_changes(view).items():
            print(
                f"{name:<8}{len(seconds):4} changes, median {statistics.median(seconds):.3f} s, "
                f"longest {max(seconds):.3f} s"
            )
        if picture is not None:
            _beside([_seen(browser, address, width) for width in _WIDTHS]).save(picture, optimize=True)


def _seen(browser: Any, address: str, width: int) -> Image.Image:
    """The switch, as a window of that width shows it."""
    view = browser.new_page(viewport={"width": width, "height": _HEIGHT})
    view.goto(address)
    view.evaluate('document.getElementById("try").scrollIntoView()')
    return Image.open(io.BytesIO(view.screenshot())).convert("RGB")


def _beside(pictures: list[Image.Image]) -> Image.Image:
    """In 256 colours: most of it is flat."""
    whole = Image.new("RGB", (sum(picture.width for picture in pictures), _HEIGHT))
    left = 0
    for picture in pictures:
        whole.paste(picture, (left, 0))
        left += picture.width
    return whole.quantize(256, kmeans=3, dither=Image.Dither.NONE)


def main() -> None:
    """As a script."""
    typer.run(benchmark)
