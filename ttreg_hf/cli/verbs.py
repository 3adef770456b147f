"""What all verbs share: exit codes, one clear message for a failure, `--debug`, and quiet libraries."""

import functools
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import Annotated, Any, NoReturn

import typer

from ttreg_hf.cli.printing import rank, stderr_is_terminal

FAILED, REFUSED, INTERRUPTED = 1, 3, 130
_Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of a failure.")]


def as_verb(function: Callable[..., None]) -> Callable[..., None]:
    """A function as a command of the contract: adds `--debug`, and turns failures into exit codes.

    Wrong input, missing files, the network and missing packages give one message. Any other exception is a bug of
    ours and keeps its traceback.
    """

    @functools.wraps(function)
    def run(*, debug: bool = False, **options: Any) -> None:
        try:
            with _quiet_libraries():
                function(**options)
        except (typer.Exit, typer.Abort, BrokenPipeError):  # typer's own business
            raise
        except KeyboardInterrupt:
            _complain("interrupted; nothing half-written remains.")
            raise typer.Exit(INTERRUPTED) from None
        except _failures() as error:
            if debug:
                traceback.print_exc()
            _complain(f"error: {_message(error)}")
            raise typer.Exit(FAILED) from error

    signature = inspect.signature(function)
    parameter = inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=_Debug)
    run.__signature__ = signature.replace(parameters=[*signature.parameters.values(), parameter])  # pyrefly: ignore[missing-attribute]
    run.__annotations__ = {**function.__annotations__, "debug": _Debug}
    return run


def refuse(message: str) -> NoReturn:
    """End with the exit code for a verdict that does not allow what was asked for."""
    _complain(message)
    raise typer.Exit(REFUSED)


def _complain(message: str) -> None:
    """On every rank: a failure on one of them must not be silent."""
    where = f" (rank {rank()})" if rank() != "0" else ""
    print(f"ttreg{where}: {message}", file=sys.stderr)


def _failures() -> tuple[type[BaseException], ...]:
    """Exceptions that tell a user what is wrong. Called only when something was raised, because it imports."""
    from huggingface_hub.errors import StrictDataclassError
    from PIL.Image import DecompressionBombError
    from safetensors import SafetensorError

    hub = (StrictDataclassError,)
    return (ValueError, TypeError, OSError, RuntimeError, ImportError, SafetensorError, DecompressionBombError, *hub)


def _message(error: BaseException) -> str:
    """The message; of a config's validator what it said, without the name of the validator."""
    from huggingface_hub.errors import StrictDataclassError

    if isinstance(error, StrictDataclassError) and error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip() or type(error).__name__


@contextmanager
def _quiet_libraries() -> Generator[None]:
    """No notices of transformers; where nobody watches, no retries and progress bars of others; undone afterwards."""
    unwatched = not stderr_is_terminal()
    variables = {"TRANSFORMERS_VERBOSITY": "error"}
    if unwatched:
        variables |= {
            "HF_HUB_VERBOSITY": "error",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        }
    added = {name: value for name, value in variables.items() if name not in os.environ}
    with ExitStack() as undo:
        undo.callback(lambda: [os.environ.pop(name) for name in added])
        os.environ.update(added)  # read by libraries when they are imported; these may be imported already:
        if "transformers" in sys.modules and "TRANSFORMERS_VERBOSITY" in added:
            _quieten_transformers(undo, unwatched)
        if "huggingface_hub" in sys.modules and "HF_HUB_VERBOSITY" in added:
            _quieten_hub(undo)
        yield


def _quieten_transformers(undo: ExitStack, unwatched: bool) -> None:
    from transformers.utils import logging

    undo.callback(logging.set_verbosity, logging.get_verbosity())
    logging.set_verbosity_error()
    if unwatched and logging.is_progress_bar_enabled():
        undo.callback(logging.enable_progress_bar)
        logging.disable_progress_bar()


def _quieten_hub(undo: ExitStack) -> None:
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars, logging

    undo.callback(logging.set_verbosity, logging.get_verbosity())
    logging.set_verbosity_error()
    if not are_progress_bars_disabled():
        undo.callback(enable_progress_bars)
        disable_progress_bars()
