"""Endpoints that list and send files."""

import hashlib
from pathlib import PurePosixPath
from typing import Any

from local_hub.access import entry_not_found, readable_repository, require_file_access
from local_hub.lfs_storage import storage_url
from local_hub.messages import Request, Response, content_response
from local_hub.storage import Commit, Store


def list_tree(store: Store, request: Request) -> Response:
    repository = readable_repository(store, request)
    commit = repository.resolve(request.revision)
    folder = (request.parameters["path"] or "").strip("/")
    entries = [
        _entry(commit, path)
        for path in _paths_below(commit, folder)
        if request.asks_for("recursive") or PurePosixPath(path).parent == PurePosixPath(folder)
    ]
    if folder and not entries:
        raise entry_not_found(commit, folder)
    return Response.of_json(entries, headers={"X-Repo-Commit": commit.oid})


def paths_info(store: Store, request: Request) -> Response:
    commit = readable_repository(store, request).resolve(request.revision)
    existing = set(_paths_below(commit, ""))
    return Response.of_json([_entry(commit, path) for path in request.form().get("paths", []) if path in existing])


def _paths_below(commit: Commit, folder: str) -> list[str]:
    """Files and folders below `folder`, at any depth."""
    paths = set(commit.files)
    for path in commit.files:
        paths |= {str(parent) for parent in PurePosixPath(path).parents} - {"."}
    return sorted(path for path in paths if not folder or path.startswith(folder + "/"))


def _entry(commit: Commit, path: str) -> dict[str, Any]:
    if path not in commit.files:
        return {"type": "directory", "path": path, "oid": hashlib.sha1(path.encode()).hexdigest(), "size": 0}
    blob = commit.files[path]
    lfs = {"oid": blob.sha256, "size": blob.size, "pointerSize": len(blob.lfs_pointer)}
    entry = {"type": "file", "path": path, "oid": blob.git_oid, "size": blob.size}
    return {**entry, "lfs": lfs} if blob.is_lfs else entry


def resolve_file(store: Store, request: Request) -> Response:
    """Content in git is sent at once; LFS content is a redirect to a signed URL of the storage host."""
    repository = readable_repository(store, request)
    require_file_access(repository, request)
    commit = repository.resolve(request.revision)
    if request["path"] not in commit.files:
        raise entry_not_found(commit, request["path"])
    blob = commit.files[request["path"]]
    headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{blob.etag}"'}
    if not blob.is_lfs:
        return content_response(request, blob.content, headers)
    headers |= {"X-Linked-ETag": f'"{blob.etag}"', "X-Linked-Size": str(blob.size)}
    return Response(302, headers={**headers, "Location": storage_url(request, repository, blob.sha256, "GET")})
