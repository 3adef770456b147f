"""What the tests of the stand-in have the real client do, in processes of its own.

They show the client's flow: what it asks, how it reacts to refusals and broken connections, what ends up where. They
do not show that the real Hub behaves the same.
"""

import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

from local_hub.hub import LocalHub

PRELUDE = """
import json
import time
from huggingface_hub import (
    CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download, snapshot_download
)

time.sleep = lambda seconds: None  # the client waits between its retries; nothing here needs it to
api = HfApi()

def outcome(function, *arguments, **options):
    try:
        function(*arguments, **options)
    except Exception as error:
        return type(error).__name__
    return "done"

def add_files(repo_id, files, **options):
    operations = [CommitOperationAdd(path, content) for path, content in files.items()]
    return api.create_commit(repo_id, operations, commit_message="add files", **options)

def read(*arguments, **options):
    with open(hf_hub_download(*arguments, **options), "rb") as file:
        return file.read().decode()

def report(**findings):
    print(json.dumps(findings))
"""
WEIGHTS = bytes(range(256)) * 400


def findings_of(
    hub: LocalHub, source: str, cache_dir: Path, *, token: str | None = None, offline: bool = False
) -> Any:
    """What a child process that runs `source` passes to `report`."""
    return json.loads(hub.run_python(PRELUDE + source, cache_dir, token=token, offline=offline))


def png(brightness: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (8, 8), brightness).save(file, "PNG")
    return file.getvalue()
