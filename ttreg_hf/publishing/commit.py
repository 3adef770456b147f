"""One commit on the Hub, or none: what every upload shares. Talks to the network."""

from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import (
    CommitInfo,
    CommitOperation,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelInfo,
    SpaceInfo,
)
from huggingface_hub.errors import HfHubHTTPError, HTTPError, RepositoryNotFoundError, RevisionNotFoundError

# HTTPError: of the HTTP library, such as a lost connection; the client passes it on as it is
NETWORK_ERRORS = (HfHubHTTPError, HTTPError)
_NOT_ALLOWED = (401, 403)
MODEL, SPACE = "model", "space"


@dataclass(frozen=True)
class Target:
    """A branch on the Hub, as it was when we looked.

    Args:
        repo_id: the repository.
        kind: `"model"` or `"space"`.
        revision: the branch.
        head: its newest commit; `None` where the branch does not exist.
        repository_exists: whether the repository does.
        files: paths in it.
        tags: of the repository.
    """

    repo_id: str
    kind: str
    revision: str
    head: str | None
    repository_exists: bool
    files: tuple[str, ...]
    tags: tuple[str, ...]


def look_at(api: HfApi, repo_id: str, revision: str | None, *, kind: str = MODEL) -> Target:
    """What is there now.

    Raises:
        RuntimeError: the Hub cannot be read.
    """
    branch = revision or "main"
    with explaining(f"{repo_id} could not be read"):
        try:
            refs = api.list_repo_refs(repo_id, repo_type=kind)
        except RepositoryNotFoundError:
            return Target(repo_id, kind, branch, None, False, (), ())
        tags = tuple(tag.name for tag in refs.tags)
        try:
            info = _info(api, repo_id, kind, branch)
        except RevisionNotFoundError:
            return Target(repo_id, kind, branch, None, True, (), tags)
    files = tuple(file.rfilename for file in info.siblings or ())
    return Target(repo_id, kind, branch, info.sha, True, files, tags)


def commit_files(
    api: HfApi,
    target: Target,
    files: Mapping[str, bytes | Path],
    *,
    message: str,
    description: str | None = None,
    delete: tuple[str, ...] = (),
    private: bool | None = None,
    create_pr: bool = False,
    space_sdk: str | None = None,
) -> CommitInfo:
    """Publish files as one commit; creates the repository or branch if there is none, and takes it back on failure.

    Refused by the Hub if somebody else has committed since `look_at`.

    Args:
        api: client, with the token.
        target: where to.
        files: path in the repository -> content, or file that holds it.
        message: first line of the commit.
        description: the lines below it.
        delete: paths to remove in the same commit.
        private: of a new repository; `None`: as the account's default.
        create_pr: open a pull request instead.
        space_sdk: what a new Space runs on.

    Raises:
        RuntimeError: it failed; says whether anything was changed, and what to do.
    """
    operations: list[CommitOperation] = [
        CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
        for name, content in files.items()
    ]
    operations += [CommitOperationDelete(name) for name in delete]
    repo_id, kind = target.repo_id, target.kind
    with ExitStack() as undo:
        with explaining(f"{repo_id} could not be prepared. Nothing was changed on the Hub"):
            if not target.repository_exists:
                api.create_repo(repo_id, private=private, repo_type=kind, space_sdk=space_sdk)
                undo.callback(_quietly_delete_repository, api, target)
            if target.repository_exists and target.head is None:
                api.create_branch(repo_id, branch=target.revision, repo_type=kind)
                undo.callback(_quietly_delete_branch, api, target)
            elif target.head is None and target.revision != "main":
                api.create_branch(repo_id, branch=target.revision, repo_type=kind)
            head = target.head or _info(api, repo_id, kind, target.revision).sha
        try:
            info = api.create_commit(
                repo_id,
                operations,
                repo_type=kind,
                commit_message=message,
                commit_description=description,
                revision=target.revision,
                create_pr=create_pr,
                parent_commit=head,
            )
        except (*NETWORK_ERRORS, RuntimeError) as error:  # RuntimeError: a file's upload failed
            arrived = _has_moved(api, target, head)
            if arrived is not False:
                undo.pop_all()  # what arrived, or may have, is not taken back
            raise RuntimeError(f"{repo_id}: {_OUTCOMES[arrived]} {explain(error)}") from error
        undo.pop_all()
    return info


_OUTCOMES = {
    False: "The commit failed, and nothing was changed on the Hub.",
    True: "The commit failed, but the branch has moved meanwhile: look at it before you push again.",
    None: "The commit failed, and the Hub does not answer whether it arrived: look before you push again.",
}


@contextmanager
def explaining(what: str) -> Generator[None]:
    """Turns errors of the network into one clear `RuntimeError` that begins with `what`."""
    try:
        yield
    except NETWORK_ERRORS as error:
        raise RuntimeError(f"{what}. {explain(error)}") from error


def explain(error: BaseException) -> str:
    """What happened and what to do, in two sentences; holds no token."""
    cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
    response = getattr(cause, "response", None)
    status = getattr(response, "status_code", None)
    if status in _NOT_ALLOWED or isinstance(cause, RepositoryNotFoundError):
        remedy = "Log in with `hf auth login`, or give a `--token` that may write there."
    elif status == 412:
        remedy = "Somebody else has committed meanwhile: look at it, and push again."
    else:
        remedy = "Try again; files that have arrived are not sent twice."
    got = f"{type(cause).__name__}: {str(cause).strip().splitlines()[0] if str(cause).strip() else 'no message'}"
    where = f"{error} " if cause is not error else ""
    return f"{where}Got {got.rstrip('.')}. {remedy}"


def _info(api: HfApi, repo_id: str, kind: str, revision: str) -> ModelInfo | SpaceInfo:
    ask = api.space_info if kind == SPACE else api.model_info
    return ask(repo_id, revision=revision)


def _has_moved(api: HfApi, target: Target, head: str | None) -> bool | None:
    """Whether the branch has a newer commit; `None` if the Hub cannot be asked."""
    try:
        return _info(api, target.repo_id, target.kind, target.revision).sha != head
    except NETWORK_ERRORS:
        return None


def _quietly_delete_repository(api: HfApi, target: Target) -> None:
    """Only ever one that was created a moment ago, and is empty."""
    with suppress(*NETWORK_ERRORS):
        api.delete_repo(target.repo_id, repo_type=target.kind)


def _quietly_delete_branch(api: HfApi, target: Target) -> None:
    with suppress(*NETWORK_ERRORS):
        api.delete_branch(target.repo_id, branch=target.revision, repo_type=target.kind)
