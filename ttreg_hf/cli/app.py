"""`ttreg`: its verbs, and its way in."""

from collections.abc import Callable, Sequence
from typing import Annotated

import typer

import ttreg_hf
from ttreg_hf.cli.apply_command import apply
from ttreg_hf.cli.calibrate_command import calibrate
from ttreg_hf.cli.command import as_verb
from ttreg_hf.cli.env_command import env
from ttreg_hf.cli.evaluate_command import evaluate
from ttreg_hf.cli.inspect_command import inspect
from ttreg_hf.cli.list_command import list_checkpoints
from ttreg_hf.cli.push_command import push
from ttreg_hf.cli.quickstart_command import quickstart
from ttreg_hf.cli.report_command import report
from ttreg_hf.cli.sync_code_command import sync_code
from ttreg_hf.cli.verify_command import verify
from ttreg_hf.cli.visualize_command import visualize

app = typer.Typer(
    name="ttreg",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_VERBS: dict[str, Callable[..., None]] = {
    "quickstart": quickstart,
    "inspect": inspect,
    "visualize": visualize,
    "calibrate": calibrate,
    "report": report,
    "apply": apply,
    "verify": verify,
    "evaluate": evaluate,
    "push": push,
    "sync-code": sync_code,
    "list": list_checkpoints,
    "env": env,
}
for name, function in _VERBS.items():
    app.command(name)(as_verb(function))


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
