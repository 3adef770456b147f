"""What passes between the server and its endpoints: accounts, requests, responses and the Hub's errors."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from email.message import Message
from typing import Any
from urllib.parse import parse_qs


@dataclass(frozen=True)
class Account:
    """The user behind a token. The owner may write everywhere; any other account reads what is public."""

    name: str
    is_owner: bool


@dataclass(frozen=True)
class Request:
    """One HTTP request. `parameters` are the decoded parts of the path; `account` is None without a token."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Message
    body: bytes
    account: Account | None
    hub_url: str
    storage_url: str
    parameters: Mapping[str, str | None] = field(default_factory=dict)

    def __getitem__(self, parameter: str) -> str:
        value = self.parameters[parameter]
        assert value is not None, f"{parameter} is optional in this route"
        return value

    @property
    def kind(self) -> str:
        """`models`, `datasets` or `spaces`; a path that does not say is a model's."""
        return self.parameters["kind"] or "models"

    @property
    def revision(self) -> str:
        return self.parameters.get("revision") or "main"

    def repository_url(self, kind: str, repo_id: str) -> str:
        return f"{self.hub_url}/{repo_id}" if kind == "models" else f"{self.hub_url}/{kind}/{repo_id}"

    def json(self) -> dict[str, Any]:
        return json.loads(self.body)

    def form(self) -> dict[str, list[str]]:
        return parse_qs(self.body.decode())

    def asks_for(self, flag: str) -> bool:
        return self.query.get(flag, "").lower() in ("1", "true")


@dataclass(frozen=True)
class Response:
    """One HTTP response."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of_json(cls, content: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> "Response":
        return cls(status, json.dumps(content).encode(), {"Content-Type": "application/json", **(headers or {})})


class HubError(Exception):
    """A refusal. `code` is the X-Error-Code from which the client chooses its exception."""

    def __init__(
        self, status: int, message: str, *, code: str | None = None, headers: Mapping[str, str] | None = None
    ):
        super().__init__(message)
        self.status = status
        ascii_message = message.encode("ascii", "replace").decode()
        self.headers = {
            "X-Error-Message": ascii_message,
            **({"X-Error-Code": code} if code else {}),
            **(headers or {}),
        }

    def response(self) -> Response:
        return Response.of_json({"error": str(self)}, status=self.status, headers=self.headers)


def content_response(request: Request, content: bytes, headers: Mapping[str, str]) -> Response:
    """The content, or the part of it that the Range header asks for."""
    headers = {**headers, "Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"}
    asked = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("Range", ""))
    if asked is None or not any(asked.groups()):
        return Response(200, content, headers)
    first, last = asked.groups()
    start = int(first) if first else max(0, len(content) - int(last))
    stop = min(int(last) + 1, len(content)) if first and last else len(content)
    if start >= stop:
        raise HubError(416, "Requested range not satisfiable", headers={"Content-Range": f"bytes */{len(content)}"})
    return Response(206, content[start:stop], {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{len(content)}"})


def timestamp(date: datetime) -> str:
    return date.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


@dataclass(frozen=True)
class RecordedRequest:
    """A request as `LocalHub.requests` lists it. `status` is None where the connection was dropped.

    `server` is `hub`, or `storage` for LFS content, which another host holds (here: another port).
    """

    server: str
    method: str
    path: str
    status: int | None
    has_token: bool
