"""What a Hub keeps: repositories, their commits, refs and files, in memory. Nothing in this file knows about HTTP."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cached_property

MAIN = "refs/heads/main"


class RevisionNotFoundError(LookupError):
    """No branch, tag, pull request or commit of the repository has this name."""


class EntryNotFoundError(LookupError):
    """No file or folder of the commit has this path."""


class ParentCommitMismatchError(Exception):
    """The branch has moved on from the commit that the writer started from."""


@dataclass(frozen=True)
class Blob:
    """The content of one file: in git, or in LFS storage with only a pointer in git."""

    content: bytes
    is_lfs: bool = False

    @property
    def size(self) -> int:
        return len(self.content)

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def lfs_pointer(self) -> bytes:
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {self.size}\n".encode()

    @cached_property
    def git_oid(self) -> str:
        stored = self.lfs_pointer if self.is_lfs else self.content
        return hashlib.sha1(b"blob %d\0" % len(stored) + stored).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_lfs else self.git_oid


@dataclass(frozen=True)
class Commit:
    """One state of a repository. `files` maps paths to blobs; `parent` is None for the first commit."""

    oid: str
    parent: str | None
    title: str
    description: str
    author: str
    date: datetime
    files: Mapping[str, Blob]


@dataclass(frozen=True)
class Addition:
    path: str
    blob: Blob


@dataclass(frozen=True)
class Deletion:
    path: str
    is_folder: bool


Operation = Addition | Deletion


@dataclass
class Repository:
    """A model or dataset repository. `refs` maps full git names (`refs/heads/main`, `refs/pr/1`) to commits."""

    kind: str
    repo_id: str
    private: bool = False
    gated: str | bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    lfs_objects: dict[str, bytes] = field(default_factory=dict)

    def resolve(self, revision: str) -> Commit:
        """The commit that a branch, a tag, a full ref or a full commit id names."""
        for ref in (revision, f"refs/heads/{revision}", f"refs/tags/{revision}"):
            if ref in self.refs:
                return self.commits[self.refs[ref]]
        if revision in self.commits:
            return self.commits[revision]
        raise RevisionNotFoundError(f"Invalid rev id: {revision}")

    def history(self, revision: str) -> list[Commit]:
        """The commits that lead to `revision`, newest first."""
        commits = [self.resolve(revision)]
        while commits[-1].parent is not None:
            commits.append(self.commits[commits[-1].parent])
        return commits

    def writable_ref(self, revision: str) -> str:
        """The branch or pull request that commits to `revision` go to; tags and commit ids never move."""
        for ref in (revision, f"refs/heads/{revision}"):
            if ref in self.refs and not ref.startswith("refs/tags/"):
                return ref
        raise RevisionNotFoundError(f"Invalid rev id: {revision}")

    def new_pull_request_ref(self) -> str:
        return f"refs/pr/{1 + sum(ref.startswith('refs/pr/') for ref in self.refs)}"

    def commit(
        self,
        operations: Iterable[Operation],
        *,
        start: str,
        ref: str,
        author: str,
        title: str,
        description: str = "",
        expected_parent: str | None = None,
    ) -> Commit:
        """Apply the operations to revision `start` and point `ref` at the result: all of them, or an error and none.

        Raises:
            RevisionNotFoundError: `start` does not exist.
            EntryNotFoundError: something that is not there was to be deleted.
            ParentCommitMismatchError: `start` is no longer at `expected_parent`.
        """
        parent = self.resolve(start)
        if expected_parent not in (None, parent.oid):
            raise ParentCommitMismatchError("A commit has happened since. Please refresh and try again.")
        files = apply_operations(parent.files, operations)
        return self._record(files, parent=parent.oid, ref=ref, author=author, title=title, description=description)

    def start_history(self, files: Mapping[str, Blob], *, author: str) -> Commit:
        """The first commit, as the Hub makes it when a repository is created."""
        return self._record(files, parent=None, ref=MAIN, author=author, title="initial commit", description="")

    def _record(
        self, files: Mapping[str, Blob], *, parent: str | None, ref: str, author: str, title: str, description: str
    ) -> Commit:
        tree = sorted((path, blob.git_oid) for path, blob in files.items())
        identity = (self.kind, self.repo_id, parent, title, description, tree, len(self.commits))
        oid = hashlib.sha1(repr(identity).encode()).hexdigest()
        now = datetime.now(timezone.utc)
        commit = Commit(oid, parent, title, description, author, now, dict(files))
        self.commits[oid] = commit
        self.refs[ref] = oid
        return commit


def apply_operations(files: Mapping[str, Blob], operations: Iterable[Operation]) -> dict[str, Blob]:
    """The files after the operations, in their order; the given ones stay as they are."""
    result = dict(files)
    for operation in operations:
        if isinstance(operation, Addition):
            result[operation.path] = operation.blob
        else:
            for path in _paths_to_delete(result, operation):
                del result[path]
    return result


def _paths_to_delete(files: Mapping[str, Blob], deletion: Deletion) -> list[str]:
    if deletion.is_folder:
        paths = [path for path in files if path.startswith(deletion.path.rstrip("/") + "/")]
    else:
        paths = [path for path in files if path == deletion.path]
    if not paths:
        raise EntryNotFoundError(f"A file with this name doesn't exist: {deletion.path}")
    return paths


@dataclass
class Store:
    """All repositories of the stand-in, by kind (`models`, `datasets` or `spaces`) and id."""

    repositories: dict[tuple[str, str], Repository] = field(default_factory=dict)

    def find(self, kind: str, repo_id: str) -> Repository | None:
        return self.repositories.get((kind, repo_id))

    def add(self, repository: Repository) -> None:
        self.repositories[repository.kind, repository.repo_id] = repository

    def remove(self, repository: Repository) -> None:
        del self.repositories[repository.kind, repository.repo_id]
