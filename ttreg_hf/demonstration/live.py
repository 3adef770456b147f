"""The neuron switch live: pictures go up in a browser, and the page of `demo` comes back. The only user of gradio."""

import itertools
import os
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from threading import Event
from typing import Any

from markupsafe import escape

from ttreg_hf.demonstration.demo import show
from ttreg_hf.demonstration.subject import Subject
from ttreg_hf.images.batches import Batch
from ttreg_hf.images.progress import Progress
from ttreg_hf.pictures.picture_files import check_images
from ttreg_hf.writing import scratch_directory

_MOST_WAITING = 16  # pictures in the queue; who comes then is told that it is full
_LARGEST_FILE = "40mb"
_CLEANING = (60, 540)  # seconds: how often pictures are looked at, and how old they get
_MOST_SESSIONS = 64  # whose page the server keeps
_FRAME_HEIGHT = "max(640px, 94vh)"
_POLICY = (
    b"default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    b"img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; base-uri 'self'; "
    b"connect-src 'self' data: blob:; worker-src 'self' blob:; form-action 'none'; object-src 'none'"
)
# Of a phone's width the page gets all, and the progress bar no text across it. As `css=` gradio would not let it reach
# that far out.
_HEAD = (
    "<style>#page .html-container { padding: 0 } @media (max-width: 700px) { "
    "#page .progress-text { display: none } .gradio-container .main.fillable { padding: 8px !important } }</style>"
)
_INTRODUCTION = (
    "<h1>{title}: the neuron switch</h1><p>Give a picture: a file, the camera, or what you have copied. It stays on "
    "the machine that runs this page and is deleted from there, after ten minutes at the latest.</p>"
)


def gradio_version() -> str:
    """The one that is installed.

    Raises:
        ImportError: none is, or one with another interface.
    """
    try:
        version = metadata.version("gradio")
    except metadata.PackageNotFoundError:
        version = "none"
    if not version.startswith("6."):
        raise ImportError(
            f'The live demo needs gradio 6; installed is {version}. Install it: `pip install "gradio>=6,<7"`.'
        )
    return version


def serve_live(subject: Subject, *, port: int | None = None, share: bool = False, say: Callable[[str], None]) -> None:
    """Serve the neuron switch for pictures that people give in a browser, until interrupted.

    Only this machine can reach it, but for `share` and for a variable `GRADIO_SERVER_NAME`, as in a Space. The browser
    asks nothing of other machines. Pictures lie in a temporary folder, which goes at the end.

    Args:
        subject: the model, with its processor.
        port: `None`: the first free one from 7860 on.
        share: also at a public address, through a server of gradio's makers.
        say: told the address.

    Raises:
        ImportError: gradio is not installed.
        OSError: the port is taken.
    """
    gradio_version()  # an error before anything else, if there is none

    def page_of(picture: str, progress: Progress) -> str:
        check_images([picture])
        return show(subject, [picture], progress=progress).framed(_FRAME_HEIGHT)

    with scratch_directory() as folder, _quiet_gradio(folder) as gradio:
        app = _app(gradio, page_of, subject.title, num_states=len(subject.states))
        _, here, everywhere = app.launch(
            prevent_thread_lock=True,
            quiet=True,
            share=share,
            server_port=port,
            ssr_mode=False,
            max_file_size=_LARGEST_FILE,
            state_session_capacity=_MOST_SESSIONS,
            footer_links=[],
            head=_HEAD,
            theme=gradio.themes.Base(font=("system-ui", "sans-serif"), font_mono=("monospace",)),
            app_kwargs={"middleware": [(_FromHereOnly, (), {})]},
        )
        say(f"live at {everywhere or here} (Ctrl-C ends it)")
        with suppress(KeyboardInterrupt):
            Event().wait()
        app.close(verbose=False)


@contextmanager
def _quiet_gradio(folder: Path) -> Generator[Any]:
    """The package, with a folder for its files, and without reports to its makers."""
    variables = {"GRADIO_TEMP_DIR": str(folder), "GRADIO_ANALYTICS_ENABLED": "False"}
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        import gradio

        yield gradio
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _app(gradio: Any, page_of: Callable[[str, Progress], str], title: str, *, num_states: int) -> Any:
    """The page around: where pictures are given, and where the switch appears."""

    def answer(picture: str | None, progress: Any = gradio.Progress()) -> str:  # noqa: B008  # gradio looks for it here
        if picture is None:
            return ""
        try:
            return page_of(picture, _counted(progress, num_states))
        except FileNotFoundError as error:
            raise gradio.Error("This picture waited too long, and is gone. Send it again.") from error
        except OSError as error:
            told = str(error).replace(picture, Path(picture).name)
            raise gradio.Error(str(escape(told)), print_exception=False) from error

    with gradio.Blocks(title=title, analytics_enabled=False, delete_cache=_CLEANING, fill_width=True) as app:
        gradio.HTML(_INTRODUCTION.format(title=escape(title)), padding=True)
        sources = ["upload", "webcam", "clipboard"]
        picture = gradio.Image(sources=sources, label="Picture", type="filepath", height=260, buttons=[])
        # The file as it was sent: what is wrong with it is told by whoever reads it. Not a subclass: gradio writes a
        # stub into the folder of its source.
        picture.preprocess = lambda payload: None if payload is None else payload.path
        page = gradio.HTML(elem_id="page")
        picture.input(
            answer, picture, page, trigger_mode="always_last", show_progress="full", api_visibility="private"
        )
    return app.queue(max_size=_MOST_WAITING, default_concurrency_limit=1)


def _counted(bar: Any, num_states: int) -> Progress:
    """Each stage is one state of the model."""
    done = itertools.count()

    def show(stage: str, batches: Iterable[Batch], num_images: int) -> Iterable[Batch]:
        bar((next(done), num_states), desc=stage, unit="states")
        return batches

    return show


class _FromHereOnly:
    """Every answer tells the browser to ask nothing of other machines.

    Args:
        app: an ASGI application.
    """

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                policies = [(b"content-security-policy", _POLICY), (b"referrer-policy", b"no-referrer")]
                message = {**message, "headers": [*message["headers"], *policies]}
            await send(message)

        await self.app(scope, receive, send_with_policy)
