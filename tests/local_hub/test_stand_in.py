"""Failures of the stand-in itself are failures of the test."""

import urllib.error
import urllib.request

import pytest

from local_hub import LocalHub

pytestmark = pytest.mark.hub


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
            opener.open(f"{hub.url}/api/collections/org/demo")
        refusal.value.close()
        assert hub.unknown_requests == ["GET /api/collections/org/demo"]
        assert [request.status for request in hub.requests] == [404]
