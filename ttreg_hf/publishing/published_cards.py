"""The card that a repository on the Hub has already. Talks to the network."""

from pathlib import Path

import yaml
from huggingface_hub import ModelCard, hf_hub_download

from ttreg_hf.publishing.card import hand_written, merged_card
from ttreg_hf.publishing.commit import Target, explaining
from ttreg_hf.publishing.published_files import CARD
from ttreg_hf.writing import scratch_directory


def merged_with_published(
    generated: ModelCard, directory: Path, target: Target | None, token: str | bool | None
) -> tuple[ModelCard, tuple[str, ...]]:
    """A generated card with what its owner wrote: on the Hub, or in the folder if there is nothing of theirs there.

    Args:
        generated: the new card.
        directory: checkpoint folder.
        target: the repository that is published to; `None`: not looked at.
        token: for a private one.

    Returns:
        The card, and notes on what was not used.

    Raises:
        RuntimeError: the Hub cannot be read.
        ValueError: the published card has metadata that cannot be read.
    """
    local = ModelCard.load(directory / CARD) if (directory / CARD).is_file() else generated
    present = published_card(target, token)
    if present is None:
        return merged_card(generated, local), ()
    merged = merged_card(generated, present)
    if hand_written(local) and not hand_written(present):
        before = merged_card(generated, local)
        merged.text = before.text
    elif hand_written(local) not in ("", hand_written(present)):
        return merged, (f"the text that was written by hand is kept from the Hub's {CARD}; the folder's is not used",)
    return merged, ()


def published_card(target: Target | None, token: str | bool | None) -> ModelCard | None:
    """The card of a repository; `None` where it has none.

    Raises:
        RuntimeError: the Hub cannot be read.
        ValueError: its metadata cannot be read.
    """
    if target is None or target.head is None or CARD not in target.files:
        return None
    with scratch_directory() as folder, explaining(f"The card of {target.repo_id} could not be read"):
        path = hf_hub_download(
            target.repo_id, CARD, repo_type=target.kind, revision=target.head, token=token, local_dir=folder
        )
        try:
            return ModelCard.load(path)
        except (ValueError, yaml.YAMLError) as error:
            raise ValueError(
                f"The metadata on top of {CARD} of {target.repo_id} must be a YAML mapping, got: {error}. Correct it "
                "on the Hub."
            ) from error
