"""Updates the travelling code of a published repository. Talks to the network."""

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitInfo, HfApi, snapshot_download

from ttreg_hf.publishing.checkpoint_config import read_config
from ttreg_hf.publishing.commit import commit_files, explaining, look_at
from ttreg_hf.publishing.output_check import check_outputs
from ttreg_hf.publishing.published_files import is_weight_file, suitcase_files
from ttreg_hf.publishing.published_model import from_pretrained
from ttreg_hf.writing import scratch_directory


@dataclass(frozen=True)
class SyncedCode:
    """Which files of a repository were replaced.

    Args:
        changed: names of files whose content differed, or that were missing.
        commit: `None` if nothing differed, or in a dry run.
    """

    changed: tuple[str, ...]
    commit: CommitInfo | None = None


def sync_code(
    repo_id: str,
    *,
    revision: str | None = None,
    create_pr: bool = False,
    dry_run: bool = False,
    token: str | bool | None = None,
) -> SyncedCode:
    """Replace the travelling code of a published checkpoint by the installed one, in one commit.

    Before that, a fresh interpreter without ttreg_hf proves that the checkpoint gives the outputs recorded in the
    repository with the new code. The repository's old code is not run. All other files of it stay as
    they are.

    Args:
        repo_id: a repository that `ttreg push` made.
        revision: branch.
        create_pr: open a pull request instead.
        dry_run: prove and list only.
        token: `None`: that of `hf auth login`.

    Raises:
        FileNotFoundError: no recorded outputs.
        ValueError: not a patched checkpoint.
        RuntimeError: the new code gives other outputs, or the Hub does not answer or take it.
    """
    api = HfApi(token=token)
    target = look_at(api, repo_id, revision)
    if target.head is None:
        raise ValueError(
            f"There must be a repository {repo_id} with a branch {target.revision}, got none. Publish it with "
            "`ttreg push CKPT ORG/NAME`."
        )
    code = suitcase_files()
    with scratch_directory() as home:
        folder = home / "checkpoint"
        with explaining(f"{repo_id} could not be downloaded"):
            wanted = ["*.json", "*.safetensors", *code]
            snapshot_download(repo_id, revision=target.head, token=token, local_dir=folder, allow_patterns=wanted)
        read_config(folder)  # of a patched model, or an error
        changed = tuple(sorted(name for name, content in code.items() if _content(folder / name) != content))
        if not changed:
            return SyncedCode(())
        _check_outputs(folder, code, repo_id, target.head, token)
    if dry_run:
        return SyncedCode(changed)
    commit = commit_files(
        api,
        target,
        {name: code[name] for name in changed},
        message="Update the code to the installed ttreg_hf",
        create_pr=create_pr,
    )
    return SyncedCode(changed, commit)


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _check_outputs(folder: Path, code: dict[str, bytes], repo_id: str, head: str, token: str | bool | None) -> None:
    for name, content in code.items():
        (folder / name).write_bytes(content)
    if not any(is_weight_file(path.name) for path in folder.iterdir()):
        from_pretrained(repo_id, revision=head, token=token).save_pretrained(folder)
    check_outputs(folder)
