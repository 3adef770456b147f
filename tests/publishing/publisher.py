"""A child process that publishes many times on the stand-in for the Hub, and reports.

Verification in a fresh interpreter is tested by `test_checkpoint.py` and `test_story.py`, and skipped in `push` here.
"""

import json
from pathlib import Path

from local_hub import LocalHub

_PRELUDE = """
import contextlib, io, json, pathlib, shutil, time, unittest.mock
import torch
from PIL import Image
import ttreg_hf
from huggingface_hub import HfApi, ModelCard
from ttreg_hf.publishing import prepared_checkpoint
from ttreg_hf.cli import main
from ttreg_hf.publishing.commit import commit_files, look_at
from ttreg_hf.publishing.push import push_checkpoint

torch.set_num_threads(1)
time.sleep = lambda seconds: None  # the client waits between its retries; nothing here needs it to
prepared_checkpoint.check_outputs = lambda directory, trust_remote_code: 0.0
api = HfApi()

def outcome(function, *arguments, **options):
    try:
        function(*arguments, **options)
    except (ValueError, OSError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "done"

def ttreg(*arguments):
    printed, complained = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(complained):
        code = main(list(arguments))
    return dict(code=code, out=printed.getvalue(), err=complained.getvalue())

report = {}
"""
_POSTLUDE = "\npathlib.Path('report.json').write_text(json.dumps(report))\n"


def run(hub: LocalHub, source: str, home: Path, *, token: str | None = None) -> dict:
    """What `source` has put into its `report`; the token of the owner is nowhere in it."""
    printed = hub.run_python(_PRELUDE + source + _POSTLUDE, home, token=token)
    report = (home / "report.json").read_text(encoding="utf-8")
    assert hub.token not in printed + report
    return json.loads(report)
