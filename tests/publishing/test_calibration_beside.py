"""A patched checkpoint on the Hub is shown and verified by the calibration that was published with it."""

import re
import shutil

from transformers import BitImageProcessorPil

from .publisher import run

_SOURCE = """
from ttreg_hf.images.scenes import draw_scene

push_checkpoint("checkpoint", "org/vit")
push_checkpoint("bare", "org/bare", force=True)
pathlib.Path("pictures").mkdir()
for number in range(8):
    draw_scene(number, size=112).save(f"pictures/{number}.png")
for name in ("vit", "bare"):
    shown = ttreg("demo", f"org/{name}", "pictures/0.png", "--output", f"page-{name}")
    page = pathlib.Path(f"page-{name}", "index.html")
    report[name] = shown | {"page": page.read_text() if page.exists() else ""}
report["verified"] = ttreg("verify", "org/vit", "--dataset", "pictures", "--json")
made = ttreg_hf.demo("org/vit", "pictures/0.png")
report["in_python"] = made.html
"""


def _threshold(page: str) -> list[str]:
    return re.findall(r'"threshold": "([^"]*)"', page)


def test_its_threshold_comes_from_the_hub(hub, home, result):
    processor = BitImageProcessorPil(
        size={"shortest_edge": 112}, crop_size={"height": 112, "width": 112}, do_center_crop=True
    )
    processor.save_pretrained(home / "checkpoint")
    shutil.copytree(home / "checkpoint", home / "bare")
    for file in (home / "bare").glob("calibration.*"):
        file.unlink()
    told = run(hub, _SOURCE, home, token=hub.token)
    assert [told[name]["err"] for name in ("vit", "bare") if told[name]["code"] != 0] == []
    expected = [f"{result.norms.norm_threshold:.3g}"]
    assert _threshold(told["vit"]["page"]) == _threshold(told["in_python"]) == expected
    assert _threshold(told["bare"]["page"]) == []
    assert f'"norm_threshold": {result.norms.norm_threshold}' in told["verified"]["out"], told["verified"]
