"""Options of `ttreg demo` that belong together."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import typer

_SPACE, _LIVE = "Publish", "Live"


@dataclass(frozen=True)
class SpaceOptions:
    """Where the demonstration is published."""

    space: Annotated[
        str | None,
        typer.Option("--space", metavar="ORG/NAME", help="Publish it with its pictures here.", rich_help_panel=_SPACE),
    ] = None
    private: Annotated[
        bool | None,
        typer.Option("--private/--public", help="Of a new Space. Default: as your account.", rich_help_panel=_SPACE),
    ] = None
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the Space; send nothing to the Hub.", rich_help_panel=_SPACE)
    ] = False

    def check(self) -> None:
        """Refuse options of a Space where none is made."""
        if self.space is None and (self.dry_run or self.private is not None):
            raise typer.BadParameter(
                "is about a Space: give `--space ORG/NAME`, too.", param_hint="--dry-run, --private"
            )


@dataclass(frozen=True)
class LiveOptions:
    """Whether pictures are given in a browser."""

    live: Annotated[
        bool,
        typer.Option("--live", help="Give pictures in a browser on this machine.", rich_help_panel=_LIVE),
    ] = False
    port: Annotated[
        int | None,
        typer.Option("--port", help="Of the page. Default: the first free one from 7860.", rich_help_panel=_LIVE),
    ] = None
    share: Annotated[
        bool,
        typer.Option(
            "--share", help="Also at a public address, through a server of gradio's makers.", rich_help_panel=_LIVE
        ),
    ] = False

    def check(self, *, is_space: bool, others: Mapping[str, object]) -> None:
        """Refuse options that do nothing.

        Args:
            is_space: whether it is published.
            others: name -> value of options of the static page, `None` or false where they were not given.
        """
        own = {"--port": self.port, "--share": self.share}
        if not self.live or is_space:
            why = "a Space has its own address." if self.live else "it is about a live page: give `--live`, too."
            _refuse(own, f"cannot be used: {why}")
        if self.live:
            _refuse(others, "is not for `--live`: pictures are given in the browser, and no file is written.")


def _refuse(options: Mapping[str, object], why: str) -> None:
    given = [name for name, value in options.items() if value not in (None, False)]
    if given:
        raise typer.BadParameter(why, param_hint=", ".join(given))
