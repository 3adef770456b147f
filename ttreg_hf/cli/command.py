"""What all verbs share: exit codes, one clear message for a failure, `--debug`, and quiet libraries."""

import dataclasses
import functools
import inspect
import logging
import os
import signal
import sys
import threading
import traceback
import typing
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import Annotated, Any, NoReturn

import typer
from typer.models import OptionInfo

from ttreg_hf.cli.printer import rank, stderr_is_terminal
from ttreg_hf.cli.wording import in_own_options

FAILED, REFUSED, INTERRUPTED = 1, 3, 130
_NOISY_LOGGERS = ("torchao", "torch.utils._pytree", "torch.onnx", "nncf")  # warn of what is not ours
_Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of a failure.")]


def as_verb(function: Callable[..., None]) -> Callable[..., None]:
    """A function as a command of the contract: adds `--debug`, and turns failures into exit codes.

    A parameter that is a dataclass stands for one option a field. Wrong input, missing files, the network and missing
    packages give one message. Any other exception is a bug of ours and keeps its traceback.
    """
    parameters, groups = _flattened(function)
    options_of_verb = _option_names(parameters)

    def complain(message: str) -> None:
        _complain(in_own_options(message, options_of_verb))

    @functools.wraps(function)
    def run(*, debug: bool = False, **options: Any) -> None:
        for name, kind in groups.items():
            options[name] = kind(**{field.name: options.pop(field.name) for field in dataclasses.fields(kind)})
        try:
            with _stopping_at_sigterm(), _quiet_libraries():
                function(**options)
        except (typer.Exit, typer.Abort, BrokenPipeError):  # typer's own business
            raise
        except KeyboardInterrupt as stop:
            exec("")  # noqa: S102 - CPython ends as if killed, if the last `exec` was interrupted; imports of dataclasses run many
            complain(str(stop) or "interrupted; nothing half-written remains.")
            raise typer.Exit(INTERRUPTED) from None
        except _Refusal as refusal:
            complain(str(refusal))
            raise typer.Exit(REFUSED) from refusal
        except _failures() as error:
            if debug:
                traceback.print_exc()
            complain(f"error: {_message(error)}")
            raise typer.Exit(FAILED) from error

    debug = inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=_Debug)
    run.__signature__ = inspect.Signature([*parameters, debug])  # pyrefly: ignore[missing-attribute]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in (*parameters, debug)}
    return run


def _flattened(function: Callable[..., None]) -> tuple[list[inspect.Parameter], dict[str, Any]]:
    """A function's parameters, each dataclass replaced by its fields; and the dataclasses, by parameter."""
    hints = typing.get_type_hints(function, include_extras=True)
    parameters, groups = [], {}
    for parameter in inspect.signature(function).parameters.values():
        kind = hints[parameter.name]
        if not dataclasses.is_dataclass(kind):
            parameters.append(parameter.replace(annotation=kind, kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        groups[parameter.name] = kind
        of_fields = typing.get_type_hints(kind, include_extras=True)
        parameters += [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default,
                annotation=of_fields[field.name],
            )
            for field in dataclasses.fields(kind)
        ]
    return parameters, groups


def _option_names(parameters: list[inspect.Parameter]) -> dict[str, str]:
    """The options of a verb, by the name of their parameter."""
    found = {}
    for parameter in parameters:
        metadata = getattr(parameter.annotation, "__metadata__", ())
        for info in [each for each in metadata if isinstance(each, OptionInfo)]:
            given = [each for each in (info.default, *(info.param_decls or ())) if isinstance(each, str)]
            written = [name for names in given for name in names.split("/") if name.startswith("--")]
            first, *others = written or [f"--{parameter.name.replace('_', '-')}"]
            found |= {parameter.name: first, **{other: other for other in others}}
    return found


class _Refusal(Exception):
    """A verdict does not allow what was asked for."""


def refuse(message: str) -> NoReturn:
    """End with the exit code for a verdict that does not allow what was asked for."""
    raise _Refusal(message)


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
def _stopping_at_sigterm() -> Generator[None]:
    """SIGTERM ends a command as Ctrl-C does, so that nothing half-written remains.

    Not in a process of a launch: its launcher ends it, and it may be waiting for one that is gone.
    """

    def stop(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread() or int(os.environ.get("WORLD_SIZE") or 1) > 1:
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


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
        for logger in map(logging.getLogger, _NOISY_LOGGERS):
            undo.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.ERROR)
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
