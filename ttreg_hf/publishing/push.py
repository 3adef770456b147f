"""Publishes checkpoints on the Hub. Talks to the network."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi, ModelCard
from huggingface_hub.utils import validate_repo_id

from ttreg_hf.calibration.calibration_result import JSON_FILE, CalibrationResult
from ttreg_hf.evaluation.evaluation_result import Evaluation, read_evaluations
from ttreg_hf.loading import is_hub_id, load_whole_processor, saved_class
from ttreg_hf.modeling.modeling_ttreg import TTRegModelMixin
from ttreg_hf.publishing.base_weights import checksum_fields
from ttreg_hf.publishing.card import model_card
from ttreg_hf.publishing.checkpoint import (
    BASE_WEIGHTS,
    CARD,
    CONFIG,
    check_verdict,
    checkpoint_files,
    is_weight_file,
    is_written_by_us,
    pictures_of,
    read_calibration,
    read_config,
    save_checkpoint,
)
from ttreg_hf.publishing.commit import commit_files, explaining, look_at
from ttreg_hf.publishing.output_check import check_outputs
from ttreg_hf.publishing.privacy import calibration_without_local_paths, config_without_local_paths
from ttreg_hf.publishing.published_cards import merged_with_published, parent_licence

_COMMIT_DIGITS = 40


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


@dataclass(frozen=True)
class _Prepared:
    """A checkpoint that has passed all checks, as it will be uploaded, without its card."""

    directory: Path
    config: Any
    calibration: CalibrationResult | None
    evaluations: tuple[Evaluation, ...]
    contents: Mapping[str, bytes | Path]
    config_only: bool
    notes: tuple[str, ...] = field(default=())


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
    config_only: bool = False,
    force: bool = False,
    dry_run: bool = False,
    token: str | bool | None = None,
) -> Publication:
    """Publish a checkpoint folder as one commit, after it has been verified in a fresh interpreter without ttreg_hf.

    A repository that is there is updated: files of an earlier push that no longer belong go, what its owner added or
    wrote on the card stays. On failure the Hub is as it was.

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
        config_only: publish no weights, but the base model's id, commit and checksum.
        force: publish whatever the verdict is.
        dry_run: check and list only; nothing is read from or written to the Hub.
        token: `None`: that of `hf auth login`.

    Raises:
        VerdictError: the calibration in the folder is `clean`, `unresolved` or of other weights, and `force` is not
            set.
        FileNotFoundError: not a complete checkpoint.
        ValueError: a file that is not published, options that do not go together, or a tag that is there.
        RuntimeError: the folder gives other outputs than recorded, or the Hub does not take it.
    """
    validate_repo_id(repo_id)
    if tag and create_pr:
        raise ValueError(
            "`tag` names a published commit, but `create_pr` only proposes one. Tag it once it is merged."
        )
    prepared = _prepare(Path(directory), config_only=config_only, force=force)
    if dry_run:
        card, notes = merged_with_published(_card(prepared, repo_id, tag, tags, {}), prepared.directory, None, token)
        return Publication(repo_id, _sizes(_with_card(prepared, card)), notes=prepared.notes + notes)

    api = HfApi(token=token)
    if "/" not in repo_id:
        with explaining("Your own name could not be asked for"):
            repo_id = f"{api.whoami()['name']}/{repo_id}"
    target = look_at(api, repo_id, revision)
    if tag in target.tags:
        raise ValueError(f"`tag` must be new, but {repo_id} has {tag!r} already. Give another one.")
    licence = parent_licence(prepared.config.base_model_name_or_path, token)
    generated = _card(prepared, repo_id, tag, tags, licence)
    card, notes = merged_with_published(generated, prepared.directory, target, token)
    contents = _with_card(prepared, card)
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
    if licence.get("license") == "other" and not config_only:
        notes += ("the base model has a licence of its own: see that it allows this, or publish with --config-only",)
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

    The processor is the one that lies beside the base model. Arguments as in `PreTrainedModel.push_to_hub`;
    errors as `push_checkpoint`.
    """
    source = model.name_or_path or model.config.base_model_name_or_path or ""
    local = not is_hub_id(source)
    processor = None
    if source and (not local or Path(source).is_dir()):
        revision_of_base = None if local else model.config.base_model_revision
        processor = load_whole_processor(model, source, revision=revision_of_base, token=token)
    with tempfile.TemporaryDirectory(prefix="ttreg-push-") as folder:
        checkpoint = save_checkpoint(
            model, Path(folder) / "checkpoint", processor=processor, max_shard_size=max_shard_size
        )
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


def _prepare(directory: Path, *, config_only: bool, force: bool) -> _Prepared:
    """All checks that need no network."""
    config, calibration = read_config(directory), read_calibration(directory)
    if calibration is not None:
        check_verdict(calibration, force=force)
    files = checkpoint_files(directory)
    if not any(is_weight_file(name) for name in files):
        raise FileNotFoundError(
            f"A checkpoint folder holds model.safetensors, but {directory} has none. Make it with "
            "`ttreg apply MODEL --output CKPT`; `--config-only` leaves the weights out when it is pushed."
        )
    if config_only:
        _check_base(config)
    check_outputs(directory)
    notes = () if "preprocessor_config.json" in files else ("no image processor: strangers have to bring their own",)

    contents: dict[str, bytes | Path] = {name: path for name, path in files.items() if name != CARD}
    fields = config_without_local_paths(json.loads((directory / CONFIG).read_text(encoding="utf-8")))
    config.base_model_name_or_path = fields["base_model_name_or_path"]
    contents[CONFIG] = _json(fields)
    if calibration is not None:
        calibration = calibration_without_local_paths(calibration)
        contents[JSON_FILE] = _json(calibration.to_dict())
    if config_only:
        model = saved_class(config).from_pretrained(directory, dtype="auto", use_safetensors=True)
        contents = {name: content for name, content in contents.items() if not is_weight_file(name)}
        contents[BASE_WEIGHTS] = _json(checksum_fields(model))
    return _Prepared(directory, config, calibration, read_evaluations(directory), contents, config_only, notes)


def _check_base(config: Any) -> None:
    base, revision = config.base_model_name_or_path, config.base_model_revision
    if not is_hub_id(base):
        raise ValueError(
            f"`--config-only` needs a base model on the Hub, got {base!r}. Apply to a Hub id, or publish the weights."
        )
    if not (revision and len(revision) == _COMMIT_DIGITS and all(digit in "0123456789abcdef" for digit in revision)):
        raise ValueError(
            f"`--config-only` needs the base model's commit, of {_COMMIT_DIGITS} hexadecimal digits, but "
            f"`base_model_revision` is {revision!r}. Make the checkpoint with `ttreg apply {base} --revision COMMIT`."
        )


def _card(
    prepared: _Prepared, repo_id: str, tag: str | None, tags: Sequence[str], licence: dict[str, str]
) -> ModelCard:
    return model_card(
        prepared.config,
        prepared.calibration,
        evaluations=prepared.evaluations,
        repo_id=repo_id,
        revision=tag,
        pictures=pictures_of(prepared.contents),
        licence=licence,
        tags=tags,
        config_only=prepared.config_only,
    )


def _with_card(prepared: _Prepared, card: ModelCard) -> dict[str, bytes | Path]:
    return dict(sorted({**prepared.contents, CARD: str(card).encode()}.items()))


def _sizes(contents: Mapping[str, bytes | Path]) -> dict[str, int]:
    return {
        name: len(content) if isinstance(content, bytes) else content.stat().st_size
        for name, content in contents.items()
    }


def _json(fields: dict[str, Any]) -> bytes:
    return (json.dumps(fields, indent=2) + "\n").encode()
