"""`ttreg demo`: pages of a checkpoint, of a stock model with a calibration, and of one of which nothing is known."""

import json
import re
from importlib import metadata

import pytest

from ttreg_hf.images.photographs import photograph_paths

from .conftest import run, succeed, without_waiting

CAT = next(path for path in photograph_paths() if path.stem == "cat")


def data_of(page):
    text = page.read_text(encoding="utf-8")
    return json.loads(re.search(r'id="switch-data">(.*?)</script>', text, re.DOTALL)[1])


def test_a_checkpoint_shows_its_own_neurons_by_its_own_calibration(
    base, checkpoint, calibration, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    ended = succeed("demo", checkpoint, CAT)
    assert ended.out == "wrote ttreg-demo/index.html\n"
    own = data_of(tmp_path / "ttreg-demo" / "index.html")
    threshold = json.loads((calibration / "calibration.json").read_text())["outlier_rule"]["norm_threshold"]
    assert [choice["threshold"] for choice in own["maps"]["norms"]["choices"] if "threshold" in choice] == [
        f"{threshold:.3g}"
    ]
    assert own["photographs"][0]["states"][0]["notes"]["outliers"] != "0 of 64"
    assert own["photographs"][0]["states"][-1]["notes"]["outliers"] == "0 of 64"

    succeed("demo", base, CAT, "--calibration", calibration, "--output", tmp_path / "stock")
    assert data_of(tmp_path / "stock" / "index.html") == own


def test_without_images_the_bundled_photographs_are_shown_and_without_neurons_the_base_model(base, tmp_path):
    ended = succeed("demo", base, "--output", tmp_path / "page", "--json")
    printed = json.loads(ended.out)
    assert len(printed["images"]) == 3
    assert printed["space"] is None
    assert f"no register neurons of {base} are known" in ended.err
    data = data_of(tmp_path / "page" / "index.html")
    assert len(data["photographs"]) == 3
    assert data["states"] == [{"kind": "base", "neurons": 0}]


def test_wrong_inputs_are_told_before_a_model_is_loaded(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    ended = run("demo", "no/such", CAT, "--output", tmp_path / "full")
    assert (ended.code, "exists and is not empty" in ended.err) == (1, True)
    (tmp_path / "text.jpg").write_text("no picture")
    ended = run("demo", "no/such", tmp_path / "text.jpg", "--output", tmp_path / "page")
    assert (ended.code, "text.jpg is not an image that Pillow can read" in ended.err) == (1, True)
    for option in ("--dry-run", "--private"):
        ended = run("demo", "no/such", CAT, option)
        told = re.sub(r"[\s│]+", " ", ended.err)  # it stands in a box
        assert (ended.code, "give `--space ORG/NAME`, too" in told) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--port", "7000"), "give `--live`, too"),
        (("--share",), "give `--live`, too"),
        (("--live", "--space", "org/name", "--share"), "a Space has its own address"),
        (("--live", CAT), "IMAGE: is not for `--live`: pictures are given in the browser"),
        (("--live", "--output", "page", "--overwrite"), "--output, --overwrite: is not for `--live`"),
    ],
)
def test_options_that_do_nothing_are_refused(arguments, told):
    ended = run("demo", "no/such", *arguments)
    assert (ended.code, told in re.sub(r"[\s│]+", " ", ended.err)) == (2, True), ended.err


@pytest.mark.parametrize("installed", [None, "5.49.1"])
def test_without_gradio_6_live_says_what_to_install_before_a_model_is_loaded(installed, monkeypatch):
    def version(name):
        if installed is None:
            raise metadata.PackageNotFoundError(name)
        return installed

    monkeypatch.setattr(metadata, "version", version)
    ended = run("demo", "no/such", "--live")
    told = (
        f'The live demo needs gradio 6; installed is {installed or "none"}. Install it: `pip install "gradio>=6,<7"`.'
    )
    assert (ended.code, without_waiting(ended.err)) == (1, f"ttreg: error: {told}\n")
