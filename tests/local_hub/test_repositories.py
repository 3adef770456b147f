"""What ends up in a repository, and who may read and write it."""

import pytest

from local_hub.asking import WEIGHTS, findings_of, png

pytestmark = pytest.mark.hub


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
