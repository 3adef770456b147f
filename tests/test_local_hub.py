"""The stand-in for the Hub, used through the real client in processes of its own.

These tests show the client's flow: what it asks, how it reacts to refusals and broken connections, what ends up where.
They do not show that the real Hub behaves the same.
"""

import io
import json
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from local_hub import LocalHub
from PIL import Image

PRELUDE = """
import json
import time
from huggingface_hub import (
    CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download, snapshot_download
)

time.sleep = lambda seconds: None  # the client waits between its retries; nothing here needs it to
api = HfApi()

def outcome(function, *arguments, **options):
    try:
        function(*arguments, **options)
    except Exception as error:
        return type(error).__name__
    return "done"

def add_files(repo_id, files, **options):
    operations = [CommitOperationAdd(path, content) for path, content in files.items()]
    return api.create_commit(repo_id, operations, commit_message="add files", **options)

def read(*arguments, **options):
    with open(hf_hub_download(*arguments, **options), "rb") as file:
        return file.read().decode()

def report(**findings):
    print(json.dumps(findings))
"""
WEIGHTS = bytes(range(256)) * 400


@pytest.fixture
def hub(local_hub: LocalHub) -> Iterator[LocalHub]:
    yield local_hub
    assert local_hub.unknown_requests == []
    assert local_hub.faults_to_come == []


def findings_of(
    hub: LocalHub, source: str, cache_dir: Path, *, token: str | None = None, offline: bool = False
) -> Any:
    """What a child process that runs `source` passes to `report`."""
    return json.loads(hub.run_python(PRELUDE + source, cache_dir, token=token, offline=offline))


def png(brightness: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (8, 8), brightness).save(file, "PNG")
    return file.getvalue()


def test_uploaded_folder_comes_back_at_its_pinned_revisions(hub, tmp_path):
    folder = tmp_path / "publisher" / "checkpoint"
    (folder / "pictures").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    (folder / "pictures" / "before.png").write_bytes(png(0))
    pushed = findings_of(
        hub,
        """
api.create_repo("org/vit")
first = api.upload_folder(repo_id="org/vit", folder_path="checkpoint", commit_message="Publish")
api.create_tag("org/vit", tag="v1")
second = add_files("org/vit", {"config.json": b'{"changed": true}'})
report(first=first.oid, second=second.oid, again=outcome(api.create_repo, "org/vit"))
""",
        folder.parent,
        token=hub.token,
    )
    assert pushed["again"] == "HfHubHTTPError"
    assert [commit.title for commit in hub.commits("org/vit")] == ["add files", "Publish", "initial commit"]
    assert hub.files("org/vit", "v1")["pictures/before.png"] == png(0)
    assert hub.files("org/vit", "v1").keys() == hub.files("org/vit").keys()

    loaded = findings_of(
        hub,
        """
paths = {revision: snapshot_download("org/vit", revision=revision) for revision in ("v1", "main")}
report(
    tagged=open(paths["v1"] + "/config.json").read(),
    newest=open(paths["main"] + "/config.json").read(),
    by_commit=read("org/vit", "config.json", revision=paths["v1"].rsplit("/", 1)[1]),
    weights=len(open(paths["v1"] + "/model.safetensors", "rb").read()),
    info=[api.model_info("org/vit", revision=revision).sha for revision in ("v1", None)],
    private=api.model_info("org/vit").private,
    files=sorted(api.list_repo_files("org/vit")),
    sizes={file.rfilename: file.size for file in api.model_info("org/vit", files_metadata=True).siblings},
)
""",
        tmp_path / "stranger",
    )
    assert (loaded["tagged"], loaded["newest"], loaded["by_commit"]) == ("{}", '{"changed": true}', "{}")
    assert loaded["weights"] == loaded["sizes"]["model.safetensors"] == len(WEIGHTS)
    assert loaded["info"] == [pushed["first"], pushed["second"]]
    assert loaded["private"] is False
    assert loaded["files"] == sorted(hub.files("org/vit"))


def test_token_never_reaches_the_storage_host(hub, tmp_path):
    source = """
api.create_repo("org/vit", private=True)
add_files("org/vit", {"model.safetensors": bytes(1000)})
report(path=hf_hub_download("org/vit", "model.safetensors"))
"""
    findings_of(hub, source, tmp_path, token=hub.token)
    storage_requests = [request for request in hub.requests if request.server == "storage"]
    assert [request.method for request in storage_requests] == ["PUT", "GET"]
    assert not any(request.has_token for request in storage_requests)


def test_unchanged_files_make_no_commit_and_no_upload(hub, tmp_path):
    hub.add_repository("org/vit", {"config.json": b"{}", "model.safetensors": WEIGHTS})
    source = """
files = {"config.json": b"{}", "model.safetensors": bytes(range(256)) * 400}
report(oid=add_files("org/vit", files).oid)
"""
    before = hub.commits("org/vit")[0].oid
    assert findings_of(hub, source, tmp_path, token=hub.token)["oid"] == before
    assert hub.commits("org/vit")[0].oid == before
    assert not any(request.method == "PUT" for request in hub.requests)


def test_private_and_gated_repositories_open_to_their_owner_only(hub, tmp_path):
    hub.add_repository("org/private", {"config.json": b"{}"}, private=True)
    hub.add_repository("org/gated", {"config.json": b"{}"}, gated=True)
    source = """
report(
    private=outcome(hf_hub_download, "org/private", "config.json"),
    private_info=outcome(api.model_info, "org/private"),
    gated=outcome(hf_hub_download, "org/gated", "config.json"),
    gated_info=outcome(api.model_info, "org/gated"),
)
"""
    refused = {
        "private": "RepositoryNotFoundError",
        "private_info": "RepositoryNotFoundError",
        "gated": "GatedRepoError",
        "gated_info": "done",
    }
    assert findings_of(hub, source, tmp_path / "anonymous") == refused
    assert findings_of(hub, source, tmp_path / "stranger", token=hub.stranger_token) == refused
    assert set(findings_of(hub, source, tmp_path / "owner", token=hub.token).values()) == {"done"}
    assert findings_of(hub, source, tmp_path / "wrong", token="hf_wrong")["private"] == "HfHubHTTPError"


def test_only_the_owner_writes_and_others_open_pull_requests(hub, tmp_path):
    hub.add_repository("org/vit", {"config.json": b"{}"})
    source = """
report(
    create=outcome(api.create_repo, "org/other"),
    commit=outcome(add_files, "org/vit", {"config.json": b"[]"}),
    tag=outcome(api.create_tag, "org/vit", tag="v1"),
    pull_request=outcome(add_files, "org/vit", {"config.json": b"[]"}, create_pr=True),
)
"""
    before = hub.commits("org/vit")
    anonymous = findings_of(hub, source, tmp_path / "anonymous")
    assert set(anonymous.values()) == {"RepositoryNotFoundError"}
    stranger = findings_of(hub, source, tmp_path / "stranger", token=hub.stranger_token)
    assert stranger.pop("pull_request") == "done"
    assert set(stranger.values()) == {"HfHubHTTPError"}
    assert hub.commits("org/vit") == before
    assert hub.files("org/vit", "refs/pr/1")["config.json"] == b"[]"
    assert not hub.has_repository("org/other")


def test_missing_things_raise_the_clients_own_exceptions(hub, tmp_path):
    hub.add_repository("org/vit", {"config.json": b"{}"})
    source = """
report(
    repository=outcome(hf_hub_download, "org/nothing", "config.json"),
    revision=outcome(hf_hub_download, "org/vit", "config.json", revision="v9"),
    file=outcome(hf_hub_download, "org/vit", "nothing.json"),
    info=outcome(api.model_info, "org/nothing"),
    info_revision=outcome(api.model_info, "org/vit", revision="v9"),
    exists=[api.repo_exists("org/vit"), api.repo_exists("org/nothing"), api.file_exists("org/vit", "nothing.json")],
    wrong_type=outcome(api.dataset_info, "org/vit"),
    deleted=outcome(
        api.create_commit, "org/vit", [CommitOperationDelete("nothing.json")], commit_message="delete"
    ),
    commit=outcome(add_files, "org/nothing", {"config.json": b"{}"}),
)
"""
    assert findings_of(hub, source, tmp_path, token=hub.token) == {
        "repository": "RepositoryNotFoundError",
        "revision": "RevisionNotFoundError",
        "file": "RemoteEntryNotFoundError",
        "info": "RepositoryNotFoundError",
        "info_revision": "RevisionNotFoundError",
        "exists": [True, False, False],
        "wrong_type": "RepositoryNotFoundError",
        "deleted": "RemoteEntryNotFoundError",
        "commit": "RepositoryNotFoundError",
    }


def test_history_operations_do_what_the_client_says(hub, tmp_path):
    hub.add_repository("org/vit", {"config.json": b"{}", "pictures/a.txt": b"a", "pictures/b.txt": b"b"})
    source = """
first = api.model_info("org/vit").sha
api.create_branch("org/vit", branch="trial")
add_files("org/vit", {"trial.txt": b"x"}, revision="trial")
api.create_commit("org/vit", [CommitOperationDelete("pictures/")], commit_message="no pictures", parent_commit=first)
pull_request = add_files("org/vit", {"config.json": b"[]"}, create_pr=True)
add_files("org/vit", {"more.txt": b"y"}, revision=pull_request.pr_revision)
api.create_tag("org/vit", tag="v1", revision=first)
api.create_tag("org/vit", tag="v2")
api.delete_tag("org/vit", tag="v2")
refs = api.list_repo_refs("org/vit", include_pull_requests=True)
report(
    pull_request=pull_request.pr_revision,
    outdated=outcome(add_files, "org/vit", {"config.json": b"1"}, parent_commit=first),
    moved_tag=outcome(add_files, "org/vit", {"config.json": b"1"}, revision="v1"),
    tag_again=outcome(api.create_tag, "org/vit", tag="v1"),
    titles=[commit.title for commit in api.list_repo_commits("org/vit")],
    refs=[ref.name for ref in [*refs.branches, *refs.tags, *refs.pull_requests]],
    top_level=[entry.path for entry in api.list_repo_tree("org/vit", revision=first)],
    info=[entry.path for entry in api.get_paths_info("org/vit", ["pictures", "config.json", "no"], revision="v1")],
)
"""
    assert findings_of(hub, source, tmp_path, token=hub.token) == {
        "pull_request": "refs/pr/1",
        "outdated": "HfHubHTTPError",
        "moved_tag": "RevisionNotFoundError",
        "tag_again": "HfHubHTTPError",
        "titles": ["no pictures", "add files", "initial commit"],
        "refs": ["main", "trial", "v1", "refs/pr/1"],
        "top_level": [".gitattributes", "config.json", "pictures"],
        "info": ["pictures", "config.json"],
    }
    assert hub.files("org/vit").keys() == {".gitattributes", "config.json"}
    assert "trial.txt" in hub.files("org/vit", "trial")
    assert hub.files("org/vit", "refs/pr/1")["config.json"] == b"[]"
    assert "more.txt" in hub.files("org/vit", "refs/pr/1")
    assert hub.refs("org/vit")["refs/tags/v1"] == hub.commits("org/vit")[1].oid


def test_one_server_error_during_an_upload_is_retried(hub, tmp_path):
    hub.add_repository("org/vit", {})
    hub.fail_next("POST", "/preupload/", status=503)
    hub.fail_next("PUT", "/lfs/models/org/vit/", status=500)
    source = 'report(done=outcome(add_files, "org/vit", {"model.safetensors": bytes(range(256)) * 400}))'
    assert findings_of(hub, source, tmp_path, token=hub.token) == {"done": "done"}
    assert hub.files("org/vit")["model.safetensors"] == WEIGHTS
    assert [request.status for request in hub.requests if request.server == "storage"] == [500, 200]


@pytest.mark.parametrize("fault", ["server error at the commit", "connection lost at the commit"])
def test_commit_that_fails_is_not_retried_and_leaves_the_repository_unchanged(hub, tmp_path, fault):
    hub.add_repository("org/vit", {"config.json": b"{}"})
    before = hub.files("org/vit"), hub.commits("org/vit"), hub.refs("org/vit")
    inject = hub.fail_next if fault == "server error at the commit" else hub.drop_next
    inject("POST", "/commit/main")
    source = """
files = {"config.json": b"[]", "model.safetensors": bytes(range(256)) * 400}
report(first=outcome(add_files, "org/vit", files))
"""
    error = findings_of(hub, source, tmp_path, token=hub.token)["first"]
    assert error == ("HfHubHTTPError" if inject == hub.fail_next else "RemoteProtocolError")
    assert (hub.files("org/vit"), hub.commits("org/vit"), hub.refs("org/vit")) == before
    assert [request.method for request in hub.requests].count("PUT") == 1


def test_interrupted_upload_leaves_the_repository_unchanged_and_can_be_repeated(hub, tmp_path):
    hub.add_repository("org/vit", {"config.json": b"{}"})
    before = hub.commits("org/vit")
    attempts = 6  # the client's first one and its five retries
    hub.drop_next("PUT", "/lfs/models/org/vit/", after_bytes=1000, times=attempts)
    source = """
files = {"config.json": b"[]", "model.safetensors": bytes(range(256)) * 400}
first = outcome(add_files, "org/vit", files)
report(first=first, commits=len(api.list_repo_commits("org/vit")), second=outcome(add_files, "org/vit", files))
"""
    assert findings_of(hub, source, tmp_path, token=hub.token) == {
        "first": "RuntimeError",
        "commits": len(before),
        "second": "done",
    }
    assert hub.files("org/vit")["model.safetensors"] == WEIGHTS
    assert hub.commits("org/vit")[1:] == before
    assert [request.status for request in hub.requests if request.server == "storage"] == [None] * attempts + [200]


def test_interrupted_download_is_resumed_where_it_stopped(hub, tmp_path):
    client_chunk = 10 * 1024**2  # bytes; what is lost of an unfinished chunk is downloaded again
    hub.add_repository("org/vit", {"model.safetensors": bytes(client_chunk + 2000)})
    hub.drop_next("GET", "/lfs/models/org/vit/", after_bytes=client_chunk + 1000)
    source = """
with open(hf_hub_download("org/vit", "model.safetensors"), "rb") as file:
    report(complete=file.read() == bytes(10 * 1024**2 + 2000))
"""
    assert findings_of(hub, source, tmp_path) == {"complete": True}
    assert [request.status for request in hub.requests if request.server == "storage"] == [None, 206]


def test_server_error_is_retried_for_a_files_metadata_and_not_for_its_content(hub, tmp_path):
    hub.add_repository("org/vit", {"config.json": b"{}", "model.safetensors": WEIGHTS})
    hub.fail_next("HEAD", "/resolve/main/config.json", status=500)
    hub.fail_next("GET", "/lfs/models/org/vit/", status=500)
    source = """
report(
    at_the_metadata=outcome(hf_hub_download, "org/vit", "config.json"),
    at_the_content=outcome(hf_hub_download, "org/vit", "model.safetensors"),
    afterwards=outcome(hf_hub_download, "org/vit", "model.safetensors"),
)
"""
    assert findings_of(hub, source, tmp_path) == {
        "at_the_metadata": "done",
        "at_the_content": "HfHubHTTPError",
        "afterwards": "done",
    }


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


def test_client_that_dies_in_the_middle_of_a_request_changes_nothing(hub):
    hub.add_repository("org/vit", {"config.json": b"{}"})
    before = hub.commits("org/vit")
    address = hub.url.removeprefix("http://")
    head = f"POST /api/models/org/vit/commit/main HTTP/1.1\r\nHost: {address}\r\n"
    credentials = f"Authorization: Bearer {hub.token}\r\nContent-Length: 1000\r\n\r\n"
    host, port = address.split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall((head + credentials + '{"key": "header"').encode())
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""
    assert hub.commits("org/vit") == before


def test_failure_inside_the_stand_in_fails_the_test():
    def send_nonsense(hub: LocalHub) -> None:
        headers = {"Authorization": f"Bearer {hub.token}"}
        request = urllib.request.Request(f"{hub.url}/api/repos/create", b"not JSON", headers, method="POST")
        with pytest.raises(ConnectionError):
            urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request)

    with pytest.raises(RuntimeError, match="stand-in for the Hub has failed"), LocalHub() as hub:
        send_nonsense(hub)


def test_unknown_endpoints_are_refused_and_remembered():
    with LocalHub() as hub:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with pytest.raises(urllib.error.HTTPError, match="404") as refusal:
            opener.open(f"{hub.url}/api/spaces/org/demo")
        refusal.value.close()
        assert hub.unknown_requests == ["GET /api/spaces/org/demo"]
        assert [request.status for request in hub.requests] == [404]
