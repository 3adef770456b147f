"""The rules by which a file goes to git itself or to LFS storage."""

from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import PurePosixPath

from local_hub.storage import Blob, Repository

LFS_SIZE_LIMIT = 10 * 1024**2  # bytes; larger files go to LFS storage whatever their name
LFS_SUFFIXES = {
    "models": ("arrow", "bin", "gz", "h5", "npy", "npz", "onnx", "parquet", "pt", "pth", "safetensors", "tar", "zip"),
    "datasets": ("arrow", "bin", "gif", "gz", "jpeg", "jpg", "npy", "npz", "parquet", "png", "tar", "webp", "zip"),
    "spaces": ("arrow", "bin", "gz", "h5", "npy", "npz", "onnx", "parquet", "pt", "pth", "safetensors", "tar", "zip"),
}


def new_repository(
    kind: str, repo_id: str, *, private: bool = False, gated: str | bool = False, author: str
) -> Repository:
    """An empty repository with the `.gitattributes` that the Hub puts in."""
    patterns = [f"*.{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES[kind]]
    repository = Repository(kind, repo_id, private=private, gated=gated)
    repository.start_history({".gitattributes": Blob("".join(patterns).encode())}, author=author)
    return repository


def belongs_in_lfs(files: Mapping[str, Blob], path: str, *, size: int, sample: bytes) -> bool:
    """Whether a file goes to LFS storage: by the repository's `.gitattributes`, its size, or binary content."""
    attributes = files[".gitattributes"].content.decode() if ".gitattributes" in files else ""
    patterns = [line.split()[0] for line in attributes.splitlines() if "filter=lfs" in line]
    name = PurePosixPath(path).name
    return size >= LFS_SIZE_LIMIT or b"\0" in sample or any(fnmatch(name, pattern) for pattern in patterns)
