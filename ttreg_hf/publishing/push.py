"""Publishes checkpoints on the Hub. Talks to the network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitInfo, HfApi, ModelCard
from huggingface_hub.utils import validate_repo_id

from ttreg_hf.loading import is_hub_id, load_whole_processor
from ttreg_hf.modeling.modeling_ttreg import TTRegModelMixin
from ttreg_hf.publishing.base_repository import BaseRepository, look_at_base
from ttreg_hf.publishing.card import model_card
from ttreg_hf.publishing.checkpoint import save_checkpoint
from ttreg_hf.publishing.checkpoint_config import read_config_fields
from ttreg_hf.publishing.commit import commit_files, explaining, look_at
from ttreg_hf.publishing.prepared_checkpoint import PreparedCheckpoint, prepare
from ttreg_hf.publishing.privacy import without_local_names
from ttreg_hf.publishing.published_cards import merged_with_published
from ttreg_hf.publishing.published_files import CARD, is_written_by_us, pictures_of
from ttreg_hf.writing import scratch_directory


@dataclass(frozen=True)
class Publication:
    """What was published, or, in a dry run, would be.

    Args:
        repo_id: where.
        sizes: path in the repository -> bytes.
        commit: that holds it; `None` in a dry run.
        changed: whether the commit is a new one; `False` if all was there already.
        notes: what the publisher should know.
    """

    repo_id: str
    sizes: Mapping[str, int]
    commit: CommitInfo | None = None
    changed: bool = False
    notes: tuple[str, ...] = ()


def push_checkpoint(
    directory: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    tag: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    commit_description: str | None = None,
    tags: Sequence[str] = (),
    config_only: bool | None = None,
    force: bool = False,
    trust_remote_code: bool = False,
    dry_run: bool = False,
    token: str | bool | None = None,
) -> Publication:
    """Publish a checkpoint folder as one commit, after it has been verified in a fresh interpreter without ttreg_hf.

    A repository that is there is updated: files of an earlier push that no longer belong go, what its owner added or
    wrote on the card stays. On failure the Hub is as it was. Only what this tool makes is sent, and licence files.

    Args:
        directory: checkpoint folder.
        repo_id: `ORG/NAME`, or `NAME` below your own name; created if there is none.
        private: visibility of a new repository; `None`: as the account's default.
        revision: branch; created if there is none.
        tag: name for the new commit, which the card's snippet then pins.
        create_pr: open a pull request instead.
        commit_message: first line of the commit.
        commit_description: the lines below it.
        tags: for the card's metadata.
        config_only: publish no weights, but the base model's id, commit and checksum. `None`: where the base model is
            gated, or its licence is not a permissive one. `False`: the weights in any case, with the base model's
            licence files.
        force: publish whatever the verdict is.
        trust_remote_code: run the folder's code to verify it, even where it is not the installed one.
        dry_run: check and list only; nothing is written to the Hub, and only the base model's licence is read.
        token: `None`: that of `hf auth login`.

    Raises:
        VerdictError: the calibration in the folder is `clean`, `unresolved` or of other weights, and `force` is not
            set.
        FileNotFoundError: not a complete checkpoint.
        ValueError: damaged files, code that is not the installed one, options that do not go together, or a tag that
            is there.
        RuntimeError: the folder gives other outputs than recorded, or the Hub does not take it.
    """
    validate_repo_id(repo_id)
    if tag and create_pr:
        raise ValueError(
            "`tag` names a published commit, but `create_pr` only proposes one. Tag it once it is merged."
        )
    directory = Path(directory)
    base = look_at_base(without_local_names(read_config_fields(directory))["base_model_name_or_path"], token)
    config_only = _is_config_only(base) if config_only is None else config_only
    prepared = prepare(directory, base, config_only=config_only, force=force, trust_remote_code=trust_remote_code)
    if dry_run:
        card, notes = merged_with_published(_card(prepared, repo_id, tag, tags), directory, None, token)
        return Publication(repo_id, _sizes(_with_card(prepared, card)), notes=prepared.notes + notes)

    api = HfApi(token=token)
    if "/" not in repo_id:
        with explaining("Your own name could not be asked for"):
            repo_id = f"{api.whoami()['name']}/{repo_id}"
    target = look_at(api, repo_id, revision)
    if tag in target.tags:
        raise ValueError(f"`tag` must be new, but {repo_id} has {tag!r} already. Give another one.")
    card, notes = merged_with_published(_card(prepared, repo_id, tag, tags), directory, target, token)
    contents = _with_card(prepared, card)
    if base is not None and not config_only:
        contents = {**base.read_licences(token), **contents}
    commit = commit_files(
        api,
        target,
        contents,
        message=commit_message or f"Publish {repo_id.split('/')[1]} with test-time registers",
        description=commit_description,
        delete=tuple(name for name in target.files if is_written_by_us(name) and name not in contents),
        private=private,
        create_pr=create_pr,
    )
    if tag:
        with explaining(f"{repo_id} was published as {commit.oid}, but could not be tagged {tag!r}"):
            api.create_tag(repo_id, tag=tag, revision=commit.oid)
    return Publication(repo_id, _sizes(contents), commit, commit.oid != target.head, prepared.notes + notes)


def push_patched_model(
    model: TTRegModelMixin,
    repo_id: str,
    *,
    commit_message: str | None = None,
    commit_description: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    max_shard_size: int | str = "50GB",
    tags: list[str] | None = None,
) -> CommitInfo:
    """`patched.push_to_hub(repo_id)`: as transformers' own, and with card, processor and verification.

    The processor is the one that lies beside the base model. No weights are published where the base model is gated,
    or its licence is not a permissive one: `push_checkpoint(..., config_only=False)` does. Arguments as in
    `PreTrainedModel.push_to_hub`; errors as `push_checkpoint`.
    """
    source = model.name_or_path or model.config.base_model_name_or_path or ""
    local = not is_hub_id(source)
    processor = None
    if source and (not local or Path(source).is_dir()):
        revision_of_base = None if local else model.config.base_model_revision
        processor = load_whole_processor(model, source, revision=revision_of_base, token=token)
    with scratch_directory() as folder:
        checkpoint = save_checkpoint(model, folder / "checkpoint", processor=processor, max_shard_size=max_shard_size)
        publication = push_checkpoint(
            checkpoint,
            repo_id,
            private=private,
            revision=revision,
            create_pr=create_pr,
            commit_message=commit_message,
            commit_description=commit_description,
            tags=tags or (),
            token=token,
        )
    if publication.commit is None:
        raise RuntimeError(f"{repo_id} must have a commit after a push, got none.")
    return publication.commit


def _is_config_only(base: BaseRepository | None) -> bool:
    """Whether to publish no weights, where nobody has said."""
    if base is not None and not base.exists:
        raise ValueError(
            f"The base model's licence says whether its weights may be published, but {base.repo_id} is not on the "
            "Hub, or not for you. `--full-weights` (`config_only=False`) publishes them if you may."
        )
    return base is not None and not base.allows_copies


def _card(prepared: PreparedCheckpoint, repo_id: str, tag: str | None, tags: Sequence[str]) -> ModelCard:
    base = prepared.base or BaseRepository("")
    return model_card(
        prepared.config,
        prepared.calibration,
        evaluations=prepared.evaluations,
        repo_id=repo_id,
        revision=tag,
        pictures=pictures_of(prepared.contents),
        licence=dict(base.licence or {}),
        licence_files=() if prepared.config_only else base.licence_files,
        is_gated=base.is_gated,
        tags=tags,
        config_only=prepared.config_only,
        space=prepared.space,
    )


def _with_card(prepared: PreparedCheckpoint, card: ModelCard) -> dict[str, bytes | Path]:
    return dict(sorted({**prepared.contents, CARD: str(card).encode()}.items()))


def _sizes(contents: Mapping[str, bytes | Path]) -> dict[str, int]:
    return {
        name: len(content) if isinstance(content, bytes) else content.stat().st_size
        for name, content in contents.items()
    }
