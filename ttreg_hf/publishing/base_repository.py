"""What the repository of a base model allows: its licence, and whether it is gated. Talks to the network."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import HfApi, ModelCard, hf_hub_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from ttreg_hf.publishing.commit import NETWORK_ERRORS, explaining
from ttreg_hf.publishing.published_files import is_licence
from ttreg_hf.writing import scratch_directory

# licences that let anyone pass copies on, whatever for
PERMISSIVE = frozenset(
    (
        *("apache-2.0", "mit", "bsd", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear"),
        *("cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0"),
    )
)
_LICENCE_FIELDS = ("license", "license_name", "license_link")


@dataclass(frozen=True)
class BaseRepository:
    """A base model on the Hub.

    Args:
        repo_id: of the model.
        exists: for this account.
        is_gated: whether its owner asks everybody to accept terms first.
        licence: `license`, `license_name` and `license_link` of its card; empty if it names none.
        licence_files: paths in it of licences and notices.
    """

    repo_id: str
    exists: bool = True
    is_gated: bool = False
    licence: Mapping[str, str] | None = None
    licence_files: tuple[str, ...] = ()

    @property
    def allows_copies(self) -> bool:
        """Whether anybody may pass its weights on."""
        return not self.is_gated and self.licence_name in PERMISSIVE

    @property
    def licence_name(self) -> str | None:
        """Such as `"apache-2.0"`."""
        return (self.licence or {}).get("license")

    @property
    def why_not(self) -> str:
        """Why its weights are not passed on without being asked to."""
        if self.is_gated:
            return f"{self.repo_id} is gated"
        return f"{self.repo_id} has {f'the licence {self.licence_name!r}' if self.licence_name else 'no licence'}"

    def read_licences(self, token: Any) -> dict[str, bytes]:
        """Its licence files: name -> content.

        Raises:
            RuntimeError: the Hub cannot be read.
        """
        with scratch_directory() as folder, explaining(f"The licence files of {self.repo_id} could not be read"):
            return {
                name: Path(hf_hub_download(self.repo_id, name, token=token, local_dir=folder)).read_bytes()
                for name in self.licence_files
            }


def look_at_base(repo_id: str | None, token: Any) -> BaseRepository | None:
    """A base model's repository; `None` for a base model that is not on the Hub.

    Raises:
        RuntimeError: the Hub cannot be read.
    """
    if repo_id is None:
        return None
    try:
        with explaining(f"{repo_id}, the base model, could not be read"):
            info = HfApi(token=token).model_info(repo_id)
    except RuntimeError as error:
        if isinstance(error.__cause__, RepositoryNotFoundError) and not isinstance(error.__cause__, GatedRepoError):
            return BaseRepository(repo_id, exists=False)
        raise
    names = sorted(file.rfilename for file in info.siblings or () if is_licence(file.rfilename))
    return BaseRepository(
        repo_id, is_gated=bool(info.gated), licence=_licence(repo_id, token), licence_files=tuple(names)
    )


def _licence(repo_id: str, token: Any) -> dict[str, str]:
    """Licence fields of a model's card; none if it cannot be read."""
    try:
        data = ModelCard.load(repo_id, token=token, ignore_metadata_errors=True).data.to_dict()
    except (*NETWORK_ERRORS, OSError, ValueError, yaml.YAMLError):
        return {}
    licence = {name: data[name] for name in _LICENCE_FIELDS if isinstance(data.get(name), str)}
    link = licence.get("license_link", "")
    if link and "://" not in link:  # a file of the parent's repository
        licence["license_link"] = f"https://huggingface.co/{repo_id}/blob/main/{link}"
    return licence
