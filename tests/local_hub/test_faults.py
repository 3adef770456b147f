"""Refusals and broken connections: what the client tries again, and what is left unchanged."""

import socket

import pytest

from local_hub.asking import WEIGHTS, findings_of

pytestmark = pytest.mark.hub


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
