"""Endpoints for accounts and for repositories as a whole."""

import hashlib
from typing import Any

from local_hub.access import (
    may_read,
    readable_repository,
    repository_not_found,
    require_account,
    require_file_access,
    require_owner,
    writable_repository,
)
from local_hub.gitattributes import LFS_SUFFIXES, new_repository
from local_hub.messages import HubError, Request, Response, timestamp
from local_hub.storage import Blob, Store


def who_am_i(store: Store, request: Request) -> Response:
    account = require_account(request)
    access_token = {"displayName": "local", "role": "write" if account.is_owner else "read"}
    return Response.of_json(
        {
            "type": "user",
            "name": account.name,
            "fullname": account.name,
            "orgs": [],
            "auth": {"type": "access_token", "accessToken": access_token},
        }
    )


def list_agent_harnesses(store: Store, request: Request) -> Response:
    """The registry by which the client labels its user agent: empty, so that no label depends on the machine."""
    return Response.of_json({"standardEnvVars": [], "harnesses": {}})


def validate_yaml(store: Store, request: Request) -> Response:
    """Only the presence of a metadata block is checked; the real Hub also checks what it says."""
    has_metadata = request.json()["content"].startswith("---\n")
    warnings = [] if has_metadata else [{"message": "empty or missing yaml metadata in repo card"}]
    return Response.of_json({"errors": [], "warnings": warnings})


def create_repository(store: Store, request: Request) -> Response:
    account = require_account(request)
    payload = request.json()
    repo_type = payload.get("type", "model")
    kind = repo_type + "s"
    if kind not in LFS_SUFFIXES:
        raise HubError(400, f"The local stand-in has no repositories of type {repo_type}")
    if kind == "spaces" and "sdk" not in payload:
        raise HubError(400, "A Space is made with an SDK")
    repo_id = f"{payload.get('organization') or account.name}/{payload['name']}"
    if not account.is_owner and not repo_id.startswith(f"{account.name}/"):
        raise HubError(403, f"You don't have the rights to create a {repo_type} under this namespace")
    url = request.repository_url(kind, repo_id)
    if store.find(kind, repo_id) is not None:
        return Response.of_json({"error": "You already created this repo", "url": url}, status=409)
    is_private = payload.get("visibility") == "private"
    store.add(new_repository(kind, repo_id, private=is_private, author=account.name))
    return Response.of_json({"url": url, "name": repo_id, "id": repo_id})


def delete_repository(store: Store, request: Request) -> Response:
    account = require_account(request)
    payload = request.json()
    repo_id = f"{payload.get('organization') or account.name}/{payload['name']}"
    repository = store.find(payload.get("type", "model") + "s", repo_id)
    if repository is None or not may_read(repository, account):
        raise repository_not_found(request)
    require_owner(request)
    store.remove(repository)
    return Response.of_json({})


def update_settings(store: Store, request: Request) -> Response:
    repository = writable_repository(store, request)
    settings = request.json()
    if "visibility" in settings:
        repository.private = settings["visibility"] == "private"
    repository.gated = settings.get("gated", repository.gated)
    return Response.of_json({})


def check_access(store: Store, request: Request) -> Response:
    require_file_access(readable_repository(store, request), request)
    return Response.of_json({})


def repository_info(store: Store, request: Request) -> Response:
    repository = readable_repository(store, request)
    commit = repository.resolve(request.revision)
    paths_only = not request.asks_for("blobs")
    return Response.of_json(
        {
            "_id": hashlib.sha1(repository.repo_id.encode()).hexdigest()[:24],
            "id": repository.repo_id,
            "author": repository.repo_id.split("/")[0],
            "sha": commit.oid,
            "private": repository.private,
            "gated": repository.gated,
            "disabled": False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "createdAt": timestamp(repository.history("main")[-1].date),
            "lastModified": timestamp(commit.date),
            "siblings": [
                {"rfilename": path} if paths_only else _sibling(path, blob)
                for path, blob in sorted(commit.files.items())
            ],
        }
    )


def _sibling(path: str, blob: Blob) -> dict[str, Any]:
    lfs = {"sha256": blob.sha256, "size": blob.size, "pointerSize": len(blob.lfs_pointer)}
    return {"rfilename": path, "size": blob.size, "blobId": blob.git_oid, **({"lfs": lfs} if blob.is_lfs else {})}
