"""A demonstration as a Space on the Hub: its files and a card, in one commit. Talks to the network."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCard, ModelCardData
from huggingface_hub.utils import validate_repo_id

from ttreg_hf.demonstration.demo import PAGE_FILE, Demo
from ttreg_hf.pictures.numbers import counted
from ttreg_hf.publishing.card import generated_card, is_generated, merged_card
from ttreg_hf.publishing.commit import SPACE, Target, commit_files, look_at
from ttreg_hf.publishing.published_cards import published_card
from ttreg_hf.publishing.published_files import CARD
from ttreg_hf.publishing.push import Publication

_TEMPLATE = Path(__file__).parent / "template" / "space.md"
_STATIC = "static"
_LONGEST_TITLE = 60  # of a Space, in characters


@dataclass(frozen=True, eq=False)
class Space:
    """What is published.

    Args:
        title: name of the model.
        sdk: what runs it, as the Hub calls it: `"static"` or `"gradio"`.
        files: path in the Space -> content.
        card: generated; it links the model, its base model and the paper.
    """

    title: str
    sdk: str
    files: Mapping[str, bytes]
    card: ModelCard


def static_space(demo: Demo) -> Space:
    """A page with its pictures, which needs no hardware."""
    card = space_card(
        demo.title,
        checkpoint=demo.checkpoint,
        base=demo.base,
        note=demo.switch.note,
        pictures=counted(len(demo.switch.photographs), "picture"),
        sdk=_STATIC,
        app_file=PAGE_FILE,
    )
    return Space(demo.title, _STATIC, {PAGE_FILE: demo.html.encode()}, card)


def space_card(
    title: str, *, checkpoint: str | None, base: str | None, note: str, pictures: str | None, **metadata: Any
) -> ModelCard:
    """The card of a Space.

    Args:
        title: name of the model.
        checkpoint: Hub id of the patched checkpoint, if it is one.
        base: Hub id of the stock checkpoint, if it is known.
        note: about the model.
        pictures: how many are shown, in words; `None`: whoever looks brings their own.
        metadata: of a Space, more of it.
    """
    data = ModelCardData(
        title=f"{title}: the neuron switch"[:_LONGEST_TITLE],
        emoji="🗑️",
        colorFrom="blue",
        colorTo="green",
        short_description="Attention sinks of a Vision Transformer, on and off",
        models=list(dict.fromkeys(filter(None, (checkpoint, base)))) or None,
        tags=["test-time-registers", "vision-transformer"],
        **metadata,
    )
    return generated_card(data, _TEMPLATE, title=title, pictures=pictures, checkpoint=checkpoint, base=base, note=note)


def publish_space(
    space: Space,
    repo_id: str,
    *,
    private: bool | None = None,
    dry_run: bool = False,
    token: str | bool | None = None,
) -> tuple[Publication, ModelCard]:
    """Publish a Space; updates one that is there, if it was published so.

    What its owner wrote on the card stays. On failure the Hub is as it was.

    Args:
        space: to publish. What is in it can be seen by whoever may see the Space.
        repo_id: `ORG/NAME`.
        private: visibility of a new Space; `None`: as the account's default.
        dry_run: nothing is read from or written to the Hub.
        token: `None`: that of `hf auth login`.

    Returns:
        What was published, or would be, and its card.

    Raises:
        ValueError: a Space is there that runs something else.
        RuntimeError: the Hub cannot be read, or does not take it.
    """
    validate_repo_id(repo_id)
    if dry_run:
        return Publication(repo_id, _sizes(_contents(space, space.card))), space.card
    api = HfApi(token=token)
    target = look_at(api, repo_id, None, kind=SPACE)
    card = _with_published(space, target, token)
    contents = _contents(space, card)
    commit = commit_files(
        api,
        target,
        contents,
        message=f"Publish the neuron switch of {space.title}",
        private=private,
        space_sdk=space.sdk,
    )
    return Publication(repo_id, _sizes(contents), commit, commit.oid != target.head), card


def _with_published(space: Space, target: Target, token: str | bool | None) -> ModelCard:
    present = published_card(target, token)
    another = "Give another name, so that it is not broken."
    if present is not None and (sdk := present.data.to_dict().get("sdk", space.sdk)) != space.sdk:
        raise ValueError(f"This is a {space.sdk} Space, but {target.repo_id} is one that runs {sdk}. {another}")
    replaced = sorted(set(target.files) & set(space.files))
    if replaced and (present is None or not is_generated(present)):
        raise ValueError(
            f"A Space is updated if `ttreg demo` made it, but {replaced[0]} of {target.repo_id} is not from it. "
            f"{another}"
        )
    return space.card if present is None else merged_card(space.card, present)


def _contents(space: Space, card: ModelCard) -> dict[str, bytes]:
    return {CARD: str(card).encode(), **space.files}


def _sizes(contents: Mapping[str, bytes]) -> dict[str, int]:
    return {name: len(content) for name, content in contents.items()}
