"""`ttreg`: its verbs, and its way in."""

from collections.abc import Sequence
from typing import Annotated, Any

import typer

import ttreg_hf
from ttreg_hf.cli.lazy_verb import LazyVerb, VerbGroup

_MORE = "More commands"
_VERBS = (
    LazyVerb(
        "quickstart", "quickstart_command:quickstart", "See it work in a minute: the whole chain on a toy, offline."
    ),
    LazyVerb("inspect", "inspect_command:inspect", "Has MODEL outlier tokens? Norms of its patches, per block."),
    LazyVerb(
        "calibrate", "calibrate_command:calibrate", "Find the neurons that make them, and check that moving works."
    ),
    LazyVerb("apply", "apply_command:apply", "Write a patched checkpoint: same weights, one more token."),
    LazyVerb("visualize", "visualize_command:visualize", "Draw norms, attention and features of your own images."),
    LazyVerb("evaluate", "evaluate_command:evaluate", "Does it help on a task? Base, patched and controls."),
    LazyVerb("push", "push_command:push", "Publish a patched checkpoint on the Hub."),
    LazyVerb("demo", "demo_command:demo", "The neuron switch on your own images, as a page.", _MORE),
    LazyVerb("verify", "verify_command:verify", "Check a patched checkpoint again, on other images.", _MORE),
    LazyVerb("export", "export_command:export", "A checkpoint as ONNX, OpenVINO or ExecuTorch, checked.", _MORE),
    LazyVerb("report", "report_command:report", "Write the report of a calibration again.", _MORE),
    LazyVerb("sync-code", "sync_code_command:sync_code", "Newer code for a published checkpoint.", _MORE),
    LazyVerb("list", "list_command:list_checkpoints", "Checkpoints that come with settings or neurons.", _MORE),
    LazyVerb("env", "env_command:env", "Versions and devices, for a report of a problem.", _MORE),
)


class _Verbs(VerbGroup):
    """All verbs, none of them imported."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for verb in _VERBS:
            self.add_command(verb)


app = typer.Typer(
    name="ttreg",
    cls=_Verbs,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: those of the process by default.

    Returns:
        The exit code: 0 done, 1 failed, 2 wrong usage, 3 refused because of the verdict, 130 interrupted.
    """
    command = typer.main.get_command(app)
    try:
        command(None if arguments is None else list(arguments), prog_name="ttreg")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ttreg {ttreg_hf.__version__}")
        raise typer.Exit()


@app.callback()
def _options_of_all(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Test-time registers for pretrained Vision Transformers: inspect, calibrate, apply.

    MODEL is a Hub id or a local folder. Start with `ttreg quickstart`, which needs no network.
    """
