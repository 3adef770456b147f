"""Bytes in, bytes out: reads HTTP requests, lets an endpoint answer them, injects faults and keeps the request log."""

import socket
import socketserver
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from email.message import Message
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from local_hub.faults import Drop, Failure, FaultPlan
from local_hub.messages import Account, HubError, RecordedRequest, Request, Response
from local_hub.routes import HUB_ROUTES, STORAGE_ROUTES, Route, find_endpoint
from local_hub.storage import EntryNotFoundError, ParentCommitMismatchError, RevisionNotFoundError, Store

CODE_OF_STORAGE_ERROR = {
    RevisionNotFoundError: (404, "RevisionNotFound"),
    EntryNotFoundError: (404, "EntryNotFound"),
    ParentCommitMismatchError: (412, None),
}


class Backend:
    """The hub and its storage host: two servers (two origins, as for the real Hub) over one store."""

    def __init__(self, accounts: Mapping[str, Account]):
        self.accounts = accounts
        self.store = Store()
        self.faults = FaultPlan()
        self.requests: list[RecordedRequest] = []
        self.unknown_requests: list[str] = []
        self.lock = threading.Lock()
        self.hub = LoopbackServer(self, "hub", HUB_ROUTES)
        self.storage = LoopbackServer(self, "storage", STORAGE_ROUTES)

    def start(self) -> None:
        self.hub.start()
        self.storage.start()

    def stop(self) -> None:
        self.hub.stop()
        self.storage.stop()

    def errors(self) -> list[BaseException]:
        """What went wrong inside the stand-in itself; a client's test must not pass on top of it."""
        return [*self.hub.errors, *self.storage.errors]

    def answer(self, request: Request, routes: Sequence[Route]) -> Response:
        found = find_endpoint(routes, request.method, request.path)
        if found is None:
            self.unknown_requests.append(f"{request.method} {request.path}")
            raise HubError(404, f"The local stand-in has no endpoint {request.method} {request.path}")
        endpoint, parameters = found
        with self.lock:
            return endpoint(self.store, replace(request, parameters=parameters))

    def account_of(self, headers: Message) -> Account | None:
        token = headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self.accounts:
            raise HubError(401, "Invalid credentials in Authorization header")
        return self.accounts.get(token)


class LoopbackServer(socketserver.ThreadingTCPServer):
    """One HTTP server on a free port of 127.0.0.1, in threads of its own."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, backend: Backend, name: str, routes: Sequence[Route]):
        super().__init__(("127.0.0.1", 0), RequestHandler)
        self.backend = backend
        self.name = name
        self.routes = routes
        self.errors: list[BaseException] = []
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def start(self) -> None:
        self.thread.start()

    def stop(self) -> None:
        self.shutdown()
        self.thread.join()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exc_info()[1]
        if error is not None and not isinstance(error, ConnectionError):  # clients that die are part of the tests
            self.errors.append(error)


class RequestHandler(BaseHTTPRequestHandler):
    """Handles the requests of one connection, one after the other."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # buffered: status line, headers and body leave in as few packets as possible
    server: LoopbackServer  # pyrefly: ignore[bad-override-mutable-attribute]  # the only one that makes it

    def handle_any_method(self) -> None:
        fault = self.server.backend.faults.take(self.command, unquote(urlsplit(self.path).path))
        if isinstance(fault, Drop) and self._content_length() > 0:
            self._drop_request(fault)
        elif isinstance(fault, Drop):
            self._drop_response(fault)
        elif isinstance(fault, Failure):
            self._read_body()
            self._send(HubError(fault.status, "Fault injected by the test").response())
        else:
            self._send(self._answer())

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any_method

    def _answer(self) -> Response:
        """The endpoint's response, or the refusal as a response."""
        body = self._read_body()
        address = urlsplit(self.path)
        backend = self.server.backend
        try:
            request = Request(
                method=self.command,
                path=address.path,
                query=dict(parse_qsl(address.query)),
                headers=self.headers,
                body=body,
                account=backend.account_of(self.headers),
                hub_url=backend.hub.url,
                storage_url=backend.storage.url,
            )
            return backend.answer(request, self.server.routes)
        except HubError as error:
            return error.response()
        except tuple(CODE_OF_STORAGE_ERROR) as error:
            status, code = CODE_OF_STORAGE_ERROR[type(error)]
            return HubError(status, str(error), code=code).response()

    def _content_length(self) -> int:
        return int(self.headers.get("Content-Length", 0))

    def _read_body(self) -> bytes:
        body = self.rfile.read(self._content_length())
        if len(body) < self._content_length():
            raise ConnectionError("the client hung up in the middle of its request")
        return body

    def _send(self, response: Response) -> None:
        self._record(response.status)
        self._write(response, len(response.body))

    def _write(self, response: Response, body_bytes: int) -> None:
        self.send_response(response.status)
        self.send_header("Content-Length", str(len(response.body)))
        for name, value in response.headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(response.body[:body_bytes])
        self.wfile.flush()

    def _drop_request(self, fault: Drop) -> None:
        """Read a part of the request's body and hang up: no endpoint sees the request."""
        self.rfile.read(fault.bytes_to_transfer(self._content_length()))
        self._record(None)
        self._hang_up()

    def _drop_response(self, fault: Drop) -> None:
        """Promise the whole response, send a part of its body and hang up."""
        response = self._answer()
        self._record(None)
        self._write(response, fault.bytes_to_transfer(len(response.body)))
        self._hang_up()

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _record(self, status: int | None) -> None:
        path = unquote(urlsplit(self.path).path)
        has_token = "Authorization" in self.headers
        self.server.backend.requests.append(RecordedRequest(self.server.name, self.command, path, status, has_token))

    def log_message(self, format: str, *args: Any) -> None:
        """Silent: the requests are in the log of the hub."""
