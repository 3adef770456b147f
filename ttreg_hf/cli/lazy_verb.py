"""A verb whose module is imported when the verb is used, so that help and usage errors come at once."""

import importlib
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from ttreg_hf.cli.command import as_verb


class LazyVerb(TyperCommand):
    """What the list of verbs shows; whatever comes behind its name is for the real command.

    Args:
        name: of the verb.
        target: `"module:function"` below `ttreg_hf.cli`.
        summary: one line of the list.
        panel: of the list, that it is shown in.
    """

    def __init__(self, name: str, target: str, summary: str, panel: str | None = None) -> None:
        super().__init__(name, help=summary, short_help=summary, rich_help_panel=panel)
        self._target = target

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """The context of the real command."""
        return self.real_command().make_context(info_name, args, parent=parent, **extra)

    def real_command(self) -> Any:
        """The verb with its options; imports its module."""
        module, _, function = self._target.partition(":")
        one = typer.Typer(add_completion=False)
        verb = as_verb(getattr(importlib.import_module(f"ttreg_hf.cli.{module}"), function))
        one.command(self.name, cls=_Command)(verb)
        return typer.main.get_command(one)


class _QuickFlags:
    """Typer's own flags are False where they are not given, not None: to make a bool of None it loads pydantic."""

    def get_params(self, ctx: Any) -> list[Any]:
        params = super().get_params(ctx)  # pyrefly: ignore[missing-attribute]
        for param in params:
            if param.name in ("help", "install_completion", "show_completion"):
                param.default = False
        return params


class _Command(_QuickFlags, TyperCommand):
    """A verb."""


class VerbGroup(_QuickFlags, TyperGroup):
    """The verbs."""
