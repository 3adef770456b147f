"""The front door of the stand-in: start it, look into it, break it, and send child processes to it."""

import os
from collections.abc import Iterator, Mapping
from types import TracebackType

import pytest
from warm import run_warm

from local_hub.faults import Drop, Failure, Fault
from local_hub.gitattributes import belongs_in_lfs, new_repository
from local_hub.messages import Account, RecordedRequest
from local_hub.server import Backend
from local_hub.storage import MAIN, Addition, Blob, Commit, Repository

KIND_OF_REPO_TYPE = {"model": "models", "dataset": "datasets", "space": "spaces"}


class LocalHub:
    """A running stand-in for the Hugging Face Hub.

    Attributes:
        url: the address that `HF_ENDPOINT` gets.
        token: of the account that owns everything.
        stranger_token: of an account that reads what is public, may open pull requests, and nothing else.
    """

    def __init__(self, *, token: str = "hf_localOwner", user: str = "user"):
        self.token = token
        self.stranger_token = "hf_localStranger"
        self.user = user
        owner, stranger = Account(user, is_owner=True), Account("stranger", is_owner=False)
        self._backend = Backend({self.token: owner, self.stranger_token: stranger})
        self.url = self._backend.hub.url

    def __enter__(self) -> "LocalHub":
        self._backend.start()
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._backend.stop()
        if error is None and self._backend.errors():
            raise RuntimeError("the local stand-in for the Hub has failed") from self._backend.errors()[0]

    # For child processes

    def environment(
        self, cache_dir: str | os.PathLike[str], *, token: str | None = None, offline: bool = False
    ) -> dict[str, str]:
        """The environment of a child process whose Hub is this one; without `token` it is anonymous.

        The libraries read these variables when they are imported, so this process cannot use them. The machine's own
        settings and proxies are dropped, and requests to anything but 127.0.0.1 go to a proxy that does not exist.
        """
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.upper().startswith(("HF_", "HUGGING", "TRANSFORMERS_")) and not name.upper().endswith("_PROXY")
        }
        nowhere = "http://127.0.0.1:9"
        return {
            **inherited,
            "HF_ENDPOINT": self.url,
            "HF_HOME": os.fspath(cache_dir),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "HF_HUB_OFFLINE": "1" if offline else "0",
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",  # datasets would ask a public bucket
            "HTTP_PROXY": nowhere,
            "HTTPS_PROXY": nowhere,
            "NO_PROXY": "127.0.0.1",
            **({"HF_TOKEN": token} if token else {}),
        }

    def run_python(
        self, source: str, cache_dir: str | os.PathLike[str], *, token: str | None = None, offline: bool = False
    ) -> str:
        """Run `source` in a process of its own whose Hub is this one, in `cache_dir`; returns what it prints.

        Raises:
            RuntimeError: it failed; the message ends with its error output.
        """
        os.makedirs(cache_dir, exist_ok=True)
        child = run_warm(source, env=self.environment(cache_dir, token=token, offline=offline), cwd=cache_dir)
        if child.returncode != 0:
            raise RuntimeError(f"the child process ended with {child.returncode}:\n{child.stderr}")
        return child.stdout

    # Looking inside

    def files(self, repo_id: str, revision: str = "main", *, repo_type: str = "model") -> dict[str, bytes]:
        """Path to content, with the `.gitattributes` that every repository starts with."""
        commit = self._repository(repo_id, repo_type).resolve(revision)
        return {path: blob.content for path, blob in commit.files.items()}

    def commits(self, repo_id: str, revision: str = "main", *, repo_type: str = "model") -> list[Commit]:
        """Newest first, down to the "initial commit" that the Hub makes itself."""
        return self._repository(repo_id, repo_type).history(revision)

    def refs(self, repo_id: str, *, repo_type: str = "model") -> dict[str, str]:
        """Full ref name (`refs/heads/main`, `refs/tags/v1`, `refs/pr/1`) to commit id."""
        return dict(self._repository(repo_id, repo_type).refs)

    def has_repository(self, repo_id: str, *, repo_type: str = "model") -> bool:
        return self._backend.store.find(KIND_OF_REPO_TYPE[repo_type], repo_id) is not None

    @property
    def requests(self) -> list[RecordedRequest]:
        """Every request so far, in order."""
        return list(self._backend.requests)

    @property
    def unknown_requests(self) -> list[str]:
        """Method and path of requests that the stand-in has no endpoint for."""
        return list(self._backend.unknown_requests)

    # Preparing and breaking

    def add_repository(
        self,
        repo_id: str,
        files: Mapping[str, bytes],
        *,
        repo_type: str = "model",
        private: bool = False,
        gated: bool = False,
    ) -> str:
        """Create a repository with one commit without going through HTTP; returns the commit's id."""
        repository = new_repository(
            KIND_OF_REPO_TYPE[repo_type],
            repo_id,
            private=private,
            gated="manual" if gated else False,
            author=self.user,
        )
        attributes = repository.resolve("main").files
        additions = [
            Addition(path, Blob(content, belongs_in_lfs(attributes, path, size=len(content), sample=content[:512])))
            for path, content in files.items()
        ]
        repository.lfs_objects.update(
            {addition.blob.sha256: addition.blob.content for addition in additions if addition.blob.is_lfs}
        )
        commit = repository.commit(additions, start="main", ref=MAIN, author=self.user, title="add files")
        with self._backend.lock:
            self._backend.store.add(repository)
        return commit.oid

    def fail_next(self, method: str, path_regex: str, *, status: int = 500, times: int = 1) -> None:
        """Answer the next `times` matching requests with `status`; `path_regex` is searched in the decoded path."""
        self._backend.faults.add(Failure(method, path_regex, times, status))

    def drop_next(self, method: str, path_regex: str, *, after_bytes: int | None = None, times: int = 1) -> None:
        """Close the connection of the next `times` matching requests after `after_bytes` (default: half) of the body.

        The body is the request's, which then has no effect, or for requests without one the response's.
        """
        self._backend.faults.add(Drop(method, path_regex, times, after_bytes))

    @property
    def faults_to_come(self) -> list[Fault]:
        """Faults that were asked for and have not happened yet: empty at the end of a test that tested something."""
        return self._backend.faults.remaining()

    def _repository(self, repo_id: str, repo_type: str) -> Repository:
        repository = self._backend.store.find(KIND_OF_REPO_TYPE[repo_type], repo_id)
        if repository is None:
            known = ", ".join(known_id for _, known_id in self._backend.store.repositories) or "none"
            raise LookupError(f"the stand-in has no {repo_type} {repo_id}; it has: {known}")
        return repository


@pytest.fixture
def local_hub() -> Iterator[LocalHub]:
    """A fresh, empty stand-in for the Hub, stopped after the test."""
    with LocalHub() as hub:
        yield hub
