"""A demonstration as a static Space on the Hub: the page and a card, in one commit. Talks to the network."""

from pathlib import Path

from huggingface_hub import HfApi, ModelCard, ModelCardData
from huggingface_hub.utils import validate_repo_id

from ttreg_hf.demonstration.demo import PAGE_FILE, Demo
from ttreg_hf.pictures.numbers import counted
from ttreg_hf.publishing.card import generated_card, merged_card
from ttreg_hf.publishing.commit import SPACE, Target, commit_files, look_at
from ttreg_hf.publishing.published_cards import published_card
from ttreg_hf.publishing.published_files import CARD
from ttreg_hf.publishing.push import Publication

_TEMPLATE = Path(__file__).parent / "template" / "space.md"
_STATIC = "static"
_LONGEST_TITLE = 60  # of a Space, in characters


def space_card(demo: Demo) -> ModelCard:
    """The generated card: it links the model, its base model and the paper."""
    models = list(dict.fromkeys(filter(None, (demo.checkpoint, demo.base))))
    data = ModelCardData(
        title=f"{demo.title}: the neuron switch"[:_LONGEST_TITLE],
        emoji="🗑️",
        colorFrom="blue",
        colorTo="green",
        sdk=_STATIC,
        app_file=PAGE_FILE,
        short_description="Attention sinks of a Vision Transformer, on and off",
        models=models or None,
        tags=["test-time-registers", "vision-transformer"],
    )
    return generated_card(
        data,
        _TEMPLATE,
        title=demo.title,
        pictures=counted(len(demo.switch.photographs), "picture"),
        checkpoint=demo.checkpoint,
        base=demo.base,
        note=demo.switch.note,
    )


def publish_space(
    demo: Demo,
    repo_id: str,
    *,
    private: bool | None = None,
    dry_run: bool = False,
    token: str | bool | None = None,
) -> tuple[Publication, ModelCard]:
    """Publish the page with its pictures as a static Space, which needs no hardware; updates one that is there.

    What its owner wrote on the card stays. On failure the Hub is as it was.

    Args:
        demo: to publish. Its pictures can be seen by whoever may see the Space.
        repo_id: `ORG/NAME`.
        private: visibility of a new Space; `None`: as the account's default.
        dry_run: nothing is read from or written to the Hub.
        token: `None`: that of `hf auth login`.

    Returns:
        What was published, or would be, and its card.

    Raises:
        ValueError: a Space of another kind is there.
        RuntimeError: the Hub cannot be read, or does not take it.
    """
    validate_repo_id(repo_id)
    card = space_card(demo)
    if dry_run:
        return Publication(repo_id, _sizes(_contents(demo, card))), card
    api = HfApi(token=token)
    target = look_at(api, repo_id, None, kind=SPACE)
    card = _with_published(card, target, token)
    contents = _contents(demo, card)
    commit = commit_files(api, target, contents, message=f"Publish the neuron switch of {demo.title}", private=private)
    return Publication(repo_id, _sizes(contents), commit, commit.oid != target.head), card


def _with_published(card: ModelCard, target: Target, token: str | bool | None) -> ModelCard:
    present = published_card(target, token)
    if present is None:
        return card
    sdk = present.data.to_dict().get("sdk", _STATIC)
    if sdk != _STATIC:
        raise ValueError(
            f"The neuron switch is a {_STATIC} Space, but {target.repo_id} is one that runs {sdk}. Give another name, "
            "so that it is not broken."
        )
    return merged_card(card, present)


def _contents(demo: Demo, card: ModelCard) -> dict[str, bytes]:
    return {CARD: str(card).encode(), PAGE_FILE: demo.html.encode()}


def _sizes(contents: dict[str, bytes]) -> dict[str, int]:
    return {name: len(content) for name, content in contents.items()}
