"""The storage host: LFS content behind signed URLs, where no token is needed (nor welcome)."""

import hashlib
import hmac
import secrets
from urllib.parse import quote

from local_hub.messages import HubError, Request, Response, content_response
from local_hub.storage import Repository, Store

SIGNING_KEY = secrets.token_bytes(16)


def store_lfs_object(store: Store, request: Request) -> Response:
    repository = _repository_of_signed_url(store, request)
    if hashlib.sha256(request.body).hexdigest() != request["sha256"]:
        raise HubError(400, "The content does not have the announced SHA-256")
    repository.lfs_objects[request["sha256"]] = request.body
    return Response(200, headers={"ETag": f'"{request["sha256"]}"'})


def send_lfs_object(store: Store, request: Request) -> Response:
    repository = _repository_of_signed_url(store, request)
    return content_response(request, repository.lfs_objects[request["sha256"]], {"ETag": f'"{request["sha256"]}"'})


def _repository_of_signed_url(store: Store, request: Request) -> Repository:
    method = "GET" if request.method == "HEAD" else request.method
    repository = store.find(request["kind"], request["repo_id"])
    if repository is None or request.query.get("signature") != signature(method, request.path):
        raise HubError(403, "The request signature does not match")
    return repository


def storage_url(request: Request, repository: Repository, sha256: str, method: str) -> str:
    path = f"/lfs/{repository.kind}/{quote(repository.repo_id)}/{sha256}"
    return f"{request.storage_url}{path}?signature={signature(method, path)}"


def signature(method: str, path: str) -> str:
    return hmac.new(SIGNING_KEY, f"{method} {path}".encode(), "sha256").hexdigest()
