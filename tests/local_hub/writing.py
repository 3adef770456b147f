"""Endpoints that receive files: upload modes, LFS uploads, commits."""

import base64
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from local_hub.access import repository_for_contribution, require_account, require_owner
from local_hub.gitattributes import belongs_in_lfs
from local_hub.lfs_storage import storage_url
from local_hub.messages import HubError, Request, Response
from local_hub.storage import Addition, Blob, Commit, Deletion, Operation, Repository, Store


def choose_upload_modes(store: Store, request: Request) -> Response:
    repository = repository_for_contribution(store, request)
    commit = repository.resolve(request.revision)
    return Response.of_json({"files": [_upload_mode(commit, file) for file in request.json()["files"]]})


def _upload_mode(commit: Commit, file: Mapping[str, Any]) -> dict[str, Any]:
    sample = base64.b64decode(file.get("sample", ""))
    is_lfs = belongs_in_lfs(commit.files, file["path"], size=file["size"], sample=sample)
    present = commit.files.get(file["path"])
    return {
        "path": file["path"],
        "uploadMode": "lfs" if is_lfs else "regular",
        "shouldIgnore": False,
        "oid": present.etag if present else None,
    }


def offer_lfs_uploads(store: Store, request: Request) -> Response:
    repository = repository_for_contribution(store, request)

    def offer(wanted: Mapping[str, Any]) -> dict[str, Any]:
        if wanted["oid"] in repository.lfs_objects:
            return {"oid": wanted["oid"], "size": wanted["size"]}
        upload = {"href": storage_url(request, repository, wanted["oid"], "PUT"), "header": {}}
        return {"oid": wanted["oid"], "size": wanted["size"], "actions": {"upload": upload}}

    return Response.of_json({"transfer": "basic", "objects": [offer(wanted) for wanted in request.json()["objects"]]})


def create_commit(store: Store, request: Request) -> Response:
    repository = repository_for_contribution(store, request)
    opens_pull_request = request.asks_for("create_pr")
    if not opens_pull_request:
        require_owner(request)
    header, *operations = _commit_lines(request.body)
    revision = request.revision
    ref = repository.new_pull_request_ref() if opens_pull_request else repository.writable_ref(revision)
    commit = repository.commit(
        list(_operations(repository, operations)),
        start=revision,
        ref=ref,
        author=require_account(request).name,
        title=header["value"]["summary"],
        description=header["value"].get("description", ""),
        expected_parent=header["value"].get("parentCommit"),
    )
    url = request.repository_url(repository.kind, repository.repo_id)
    answer = {"success": True, "commitOid": commit.oid, "commitUrl": f"{url}/commit/{commit.oid}", "hookOutput": ""}
    if opens_pull_request:
        answer["pullRequestUrl"] = f"{url}/discussions/{ref.rsplit('/', 1)[1]}"
    return Response.of_json(answer)


def _commit_lines(body: bytes) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in body.splitlines() if line]
    if not lines or lines[0]["key"] != "header":
        raise HubError(400, "The first line of a commit must be its header")
    return lines


def _operations(repository: Repository, lines: Iterable[Mapping[str, Any]]) -> Iterator[Operation]:
    for line in lines:
        key, value = line["key"], line["value"]
        _require_safe_path(value["path"])
        if key == "file":
            yield Addition(value["path"], Blob(base64.b64decode(value["content"])))
        elif key == "lfsFile":
            yield Addition(value["path"], _uploaded_blob(repository, value["oid"]))
        elif key in ("deletedFile", "deletedFolder"):
            yield Deletion(value["path"], is_folder=key == "deletedFolder")
        else:
            raise HubError(400, f"Unknown operation in a commit: {key}")


def _uploaded_blob(repository: Repository, sha256: str) -> Blob:
    if sha256 not in repository.lfs_objects:
        raise HubError(400, f"Your push was rejected because an LFS pointer points to a missing file: {sha256}")
    return Blob(repository.lfs_objects[sha256], is_lfs=True)


def _require_safe_path(path: str) -> None:
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or {"..", ".git"} & set(parts):
        raise HubError(400, f"Invalid path: {path}")
