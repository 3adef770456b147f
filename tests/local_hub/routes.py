"""Which endpoint answers which request."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from urllib.parse import unquote

from local_hub.lfs_storage import send_lfs_object, store_lfs_object
from local_hub.messages import Request, Response
from local_hub.reading import list_tree, paths_info, resolve_file
from local_hub.repositories import (
    check_access,
    create_repository,
    delete_repository,
    list_agent_harnesses,
    repository_info,
    update_settings,
    validate_yaml,
    who_am_i,
)
from local_hub.revisions import create_branch, create_tag, delete_branch, delete_tag, list_commits, list_refs
from local_hub.storage import Store
from local_hub.writing import choose_upload_modes, create_commit, offer_lfs_uploads

Endpoint = Callable[[Store, Request], Response]


@dataclass(frozen=True)
class Route:
    """`pattern` is matched against the whole path, still quoted: a revision such as `refs%2Fpr%2F1` is one segment."""

    method: str
    pattern: str
    endpoint: Endpoint

    def match(self, method: str, path: str) -> dict[str, str | None] | None:
        """The decoded parts of the path, or None where this route does not apply."""
        found = re.fullmatch(self.pattern, path) if self.method == method else None
        return found and {name: part and unquote(part) for name, part in found.groupdict().items()}


REPO_ID = r"(?P<repo_id>[^/]+/[^/]+)"
API = rf"/api/(?P<kind>models|datasets|spaces)/{REPO_ID}"
WEB = rf"/(?:(?P<kind>datasets|spaces)/)?{REPO_ID}"
REVISION = r"(?P<revision>[^/]+)"
NAME = r"(?P<name>[^/]+)"

HUB_ROUTES = (
    Route("GET", r"/api/whoami-v2", who_am_i),
    Route("GET", r"/api/agent-harnesses", list_agent_harnesses),
    Route("POST", r"/api/validate-yaml", validate_yaml),
    Route("POST", r"/api/repos/create", create_repository),
    Route("DELETE", r"/api/repos/delete", delete_repository),
    Route("PUT", rf"{API}/settings", update_settings),
    Route("GET", rf"{API}/auth-check", check_access),
    Route("GET", rf"{API}(?:/revision/{REVISION})?", repository_info),
    Route("GET", rf"{API}/refs", list_refs),
    Route("POST", rf"{API}/branch/{NAME}", create_branch),
    Route("DELETE", rf"{API}/branch/{NAME}", delete_branch),
    Route("POST", rf"{API}/tag/{NAME}", create_tag),
    Route("DELETE", rf"{API}/tag/{NAME}", delete_tag),
    Route("GET", rf"{API}/commits/{REVISION}", list_commits),
    Route("GET", rf"{API}/tree/{REVISION}(?:/(?P<path>.+))?", list_tree),
    Route("POST", rf"{API}/paths-info/{REVISION}", paths_info),
    Route("POST", rf"{API}/preupload/{REVISION}", choose_upload_modes),
    Route("POST", rf"{WEB}\.git/info/lfs/objects/batch", offer_lfs_uploads),
    Route("POST", rf"{API}/commit/{REVISION}", create_commit),
    Route("GET", rf"{WEB}/(?:resolve|raw)/{REVISION}/(?P<path>.+)", resolve_file),
)
STORAGE_ROUTES = (
    Route("PUT", rf"/lfs/(?P<kind>models|datasets|spaces)/{REPO_ID}/(?P<sha256>\w{{64}})", store_lfs_object),
    Route("GET", rf"/lfs/(?P<kind>models|datasets|spaces)/{REPO_ID}/(?P<sha256>\w{{64}})", send_lfs_object),
)


def find_endpoint(routes: Iterable[Route], method: str, path: str) -> tuple[Endpoint, dict[str, str | None]] | None:
    """The endpoint for a request and the decoded parts of its path; HEAD is answered as GET without a body."""
    for route in routes:
        parameters = route.match("GET" if method == "HEAD" else method, path)
        if parameters is not None:
            return route.endpoint, parameters
    return None
