"""Libraries that read and write through the client, its cache, and what child processes cannot reach."""

import json

import pytest

from local_hub.asking import findings_of, png

pytestmark = pytest.mark.hub


def test_downloaded_files_are_found_offline_and_others_are_not(hub, tmp_path):
    hub.add_repository("org/vit", {"config.json": b"{}", "README.md": b"card"})
    findings_of(hub, 'report(content=read("org/vit", "config.json"))', tmp_path)
    requests_before = hub.requests
    source = """
report(
    content=read("org/vit", "config.json"),
    other_file=outcome(hf_hub_download, "org/vit", "README.md"),
    info=outcome(api.model_info, "org/vit"),
)
"""
    assert findings_of(hub, source, tmp_path, offline=True) == {
        "content": "{}",
        "other_file": "LocalEntryNotFoundError",
        "info": "OfflineModeIsEnabled",
    }
    assert hub.requests == requests_before


def test_child_processes_reach_no_other_host(hub, tmp_path):
    source = """
from huggingface_hub.utils import get_session

report(other_host=outcome(get_session().get, "https://hub.invalid"))
"""
    assert findings_of(hub, source, tmp_path) == {"other_host": "ConnectError"}


def test_dataset_repositories_stream_their_images(hub, tmp_path):
    folder = {f"train/{index}.png": png(40 * index) for index in range(4)}
    hub.add_repository("org/photographs", folder, repo_type="dataset", private=True)
    source = """
import json
from datasets import Dataset, load_dataset

def brightness(repo_id):
    return [row["image"].getpixel((0, 0)) for row in load_dataset(repo_id, split="train", streaming=True)]

photographs = load_dataset("org/photographs", split="train", streaming=True)
rows = {"image": [row["image"] for row in photographs]}
Dataset.from_dict(rows, features=photographs.features).push_to_hub("org/parquet")
print(json.dumps({repo_id: brightness(repo_id) for repo_id in ("org/photographs", "org/parquet")}))
"""
    values = json.loads(hub.run_python(source, tmp_path, token=hub.token))
    assert values == {"org/photographs": [0, 40, 80, 120], "org/parquet": [0, 40, 80, 120]}
    assert "data/train-00000-of-00001.parquet" in hub.files("org/parquet", repo_type="dataset")


def test_pushed_model_loads_by_name_in_a_fresh_process(hub, tmp_path):
    build = """
import torch
from transformers import Dinov2Config, Dinov2Model

torch.manual_seed(0)
config = Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
Dinov2Model(config).push_to_hub("org/tiny-dinov2", private=True)
"""
    load = """
import torch
from transformers import AutoModel

model = AutoModel.from_pretrained("org/tiny-dinov2", revision="main")
torch.manual_seed(0)
built = type(model)(model.config)
same = all(torch.equal(*pair) for pair in zip(model.state_dict().values(), built.state_dict().values()))
print(type(model).__name__, same)
"""
    hub.run_python(build, tmp_path / "publisher", token=hub.token)
    assert {"config.json", "model.safetensors", "README.md"} <= hub.files("org/tiny-dinov2").keys()
    assert hub.run_python(load, tmp_path / "owner", token=hub.token).split() == ["Dinov2Model", "True"]
