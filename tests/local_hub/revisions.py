"""Endpoints for branches, tags, pull requests and commits."""

from local_hub.access import readable_repository, writable_repository
from local_hub.messages import HubError, Request, Response, timestamp
from local_hub.storage import Store


def list_refs(store: Store, request: Request) -> Response:
    repository = readable_repository(store, request)

    def refs_under(prefix: str, *, name_starts_at: int) -> list[dict[str, str]]:
        return [
            {"name": ref[name_starts_at:], "ref": ref, "targetCommit": oid}
            for ref, oid in repository.refs.items()
            if ref.startswith(prefix)
        ]

    return Response.of_json(
        {
            "branches": refs_under("refs/heads/", name_starts_at=len("refs/heads/")),
            "tags": refs_under("refs/tags/", name_starts_at=len("refs/tags/")),
            "pullRequests": refs_under("refs/pr/", name_starts_at=0),
            "converts": [],
        }
    )


def create_branch(store: Store, request: Request) -> Response:
    start = (request.json() if request.body else {}).get("startingPoint", "main")
    return _create_ref(store, request, ref=f"refs/heads/{request['name']}", start=start)


def create_tag(store: Store, request: Request) -> Response:
    return _create_ref(store, request, ref=f"refs/tags/{request.json()['tag']}", start=request["name"])


def _create_ref(store: Store, request: Request, *, ref: str, start: str) -> Response:
    repository = writable_repository(store, request)
    commit = repository.resolve(start)
    if ref in repository.refs:
        raise HubError(409, f"Reference already exists: {ref}")
    repository.refs[ref] = commit.oid
    return Response.of_json({})


def delete_branch(store: Store, request: Request) -> Response:
    return _delete_ref(store, request, ref=f"refs/heads/{request['name']}")


def delete_tag(store: Store, request: Request) -> Response:
    return _delete_ref(store, request, ref=f"refs/tags/{request['name']}")


def _delete_ref(store: Store, request: Request, *, ref: str) -> Response:
    repository = writable_repository(store, request)
    repository.resolve(ref)
    del repository.refs[ref]
    return Response.of_json({})


def list_commits(store: Store, request: Request) -> Response:
    commits = readable_repository(store, request).history(request.revision)
    return Response.of_json(
        [
            {
                "id": commit.oid,
                "title": commit.title,
                "message": commit.description,
                "date": timestamp(commit.date),
                "authors": [{"user": commit.author}],
            }
            for commit in commits
        ]
    )
