"""A demonstration as a Space, on the stand-in for the Hub: one child process publishes many times."""

import json
from pathlib import Path

import pytest
from publishing.publisher import run
from transformers import BitImageProcessorPil

from ttreg_hf.publishing.checkpoint import save_checkpoint

PICTURES = """
from PIL import Image
from ttreg_hf.images.photographs import load_photographs
load_photographs()[0].resize((112, 112)).save("cat.png")
"""


@pytest.fixture
def home(shown, tmp_path) -> Path:
    """A working directory with `checkpoint`."""
    processor = BitImageProcessorPil(
        size={"shortest_edge": 112}, crop_size={"height": 112, "width": 112}, do_center_crop=True
    )
    save_checkpoint(shown.patched, tmp_path / "home" / "checkpoint", processor=processor)
    return tmp_path / "home"


def test_a_space_is_published_updated_and_linked(hub, home):
    source = (
        PICTURES
        + """
publish = ("demo", "checkpoint", "cat.png", "--overwrite", "--output", "page", "--space", "org/toy")
report["first"] = ttreg(*publish, "--private", "--json")
report["again"] = ttreg(*publish)
card = pathlib.Path("checkpoint/README.md").read_text()
report["linked"] = card.count("https://huggingface.co/spaces/org/toy")

readme = ModelCard.load("org/toy", repo_type="space")
readme.data.license = "mit"
readme.text += "\\nMy own words.\\n"
api.upload_file(path_or_fileobj=str(readme).encode(), path_in_repo="README.md", repo_id="org/toy", repo_type="space")
report["updated"] = ttreg(*publish, "--device", "cpu")

push_checkpoint("checkpoint", "org/vit")
"""
    )
    told = run(hub, source, home, token=hub.token)
    assert [told[name]["code"] for name in ("first", "again", "updated")] == [0, 0, 0], told
    printed = json.loads(told["first"]["out"])
    assert printed["space"]["commit"] == hub.commits("org/toy", repo_type="space")[-2].oid
    assert "can be seen by whoever may see the Space" in told["first"]["err"]
    assert "unchanged" in told["again"]["out"]
    files = hub.files("org/toy", repo_type="space")
    assert files["index.html"] == (home / "page" / "index.html").read_bytes()
    card = files["README.md"].decode()
    assert "sdk: static" in card
    assert "app_file: index.html" in card
    assert "license: mit" in card
    assert card.count("My own words.") == 1
    assert "https://arxiv.org/abs/2506.08010" in card
    assert told["linked"] == 1
    assert "https://huggingface.co/spaces/org/toy" in hub.files("org/vit")["README.md"].decode()
    assert not hub.has_repository("org/toy")  # as a model
    assert str(home) not in card + files["index.html"].decode()


def test_the_card_links_model_and_base_once_each(shown):
    import dataclasses

    from ttreg_hf.demonstration.space import static_space

    both = static_space(dataclasses.replace(shown.demo, checkpoint="org/vit-ttreg", base="org/vit")).card
    assert both.data.to_dict()["models"] == ["org/vit-ttreg", "org/vit"]
    assert "Model: [org/vit-ttreg](https://huggingface.co/org/vit-ttreg)" in str(both)
    assert "Base model: [org/vit](https://huggingface.co/org/vit)" in str(both)
    neither = static_space(shown.demo).card
    assert "models" not in neither.data.to_dict()
    assert "Base model" not in str(neither)


def test_failures_and_dry_runs_leave_the_hub_as_it_was(hub, home):
    hub.add_repository("org/app", {"README.md": b"---\nsdk: gradio\n---\nAn app.\n"}, repo_type="space")
    hub.add_repository("org/own", {"README.md": b"---\nsdk: static\n---\n", "index.html": b"own"}, repo_type="space")
    hub.fail_next("POST", "org/new/commit/main", status=500)
    before = hub.commits("org/app", repo_type="space")
    source = (
        PICTURES
        + """
show = ("demo", "checkpoint", "cat.png", "--overwrite", "--output", "page")
report["dry"] = ttreg(*show, "--space", "org/dry", "--dry-run")
report["app"] = ttreg(*show, "--space", "org/app")
report["own"] = ttreg(*show, "--space", "org/own")
report["new"] = ttreg(*show, "--space", "org/new")
report["card"] = pathlib.Path("checkpoint/README.md").read_text()
"""
    )
    told = run(hub, source, home, token=hub.token)
    assert told["dry"]["code"] == 0
    assert "dry run: nothing was sent to org/dry. Its card:\n\n---\n" in told["dry"]["out"]
    assert "sdk: static" in told["dry"]["out"]
    assert told["app"]["code"] == told["own"]["code"] == told["new"]["code"] == 1
    assert "if `ttreg demo` made it, but index.html of org/own is not from it." in told["own"]["err"]
    assert hub.files("org/own", repo_type="space")["index.html"] == b"own"
    assert "is one that runs gradio. Give another name, so that it is not broken." in told["app"]["err"]
    assert "The commit failed, and nothing was changed on the Hub." in told["new"]["err"]
    assert hub.commits("org/app", repo_type="space") == before
    assert not any(hub.has_repository(f"org/{name}", repo_type="space") for name in ("dry", "new"))
    assert "org/dry" not in "".join(request.path for request in hub.requests)
    assert "huggingface.co/spaces" not in told["card"]
