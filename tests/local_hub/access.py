"""Who may do what, and the answers to those who may not.

Status codes and `X-Error-Code` values are the ones that the client turns into its exceptions (huggingface_hub 2.4,
`utils/_http.py`). An anonymous request gets 401 where one with a token gets 404: strangers cannot tell a private
repository from a missing one.
"""

from local_hub.messages import Account, HubError, Request
from local_hub.storage import Commit, Repository, Store


def may_read(repository: Repository, account: Account | None) -> bool:
    return not repository.private or (account is not None and account.is_owner)


def readable_repository(store: Store, request: Request) -> Repository:
    repository = store.find(request.kind, request["repo_id"])
    if repository is None or not may_read(repository, request.account):
        raise repository_not_found(request)
    return repository


def repository_for_contribution(store: Store, request: Request) -> Repository:
    """For commits and what comes before them: any account may open a pull request on what it may read."""
    repository = readable_repository(store, request)
    require_account(request)
    return repository


def writable_repository(store: Store, request: Request) -> Repository:
    repository = repository_for_contribution(store, request)
    require_owner(request)
    return repository


def require_account(request: Request) -> Account:
    if request.account is None:
        # The real Hub sends no code here, and the client concludes RepositoryNotFoundError from the 401; for plain
        # http:// addresses it does not (REPO_API_REGEX wants https://), so the stand-in says it in so many words.
        raise HubError(401, "Invalid username or password.", code="RepoNotFound")
    return request.account


def require_owner(request: Request) -> None:
    if not require_account(request).is_owner:
        raise HubError(403, "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request")


def require_file_access(repository: Repository, request: Request) -> None:
    if repository.gated and (request.account is None or not request.account.is_owner):
        message = f"Access to {repository.repo_id} is restricted and you are not in the authorized list."
        raise HubError(403 if request.account else 401, message, code="GatedRepo")


def repository_not_found(request: Request) -> HubError:
    return HubError(404 if request.account else 401, "Repository not found", code="RepoNotFound")


def entry_not_found(commit: Commit, path: str) -> HubError:
    headers = {"X-Repo-Commit": commit.oid}  # with it the client remembers that the file does not exist
    return HubError(404, f"Entry not found: {path}", code="EntryNotFound", headers=headers)
