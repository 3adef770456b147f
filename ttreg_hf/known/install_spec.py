"""Where strangers get this package from, for cards and messages.

The bare name is not ours on the package index: whoever is told to install it may get somebody else's code.
"""

INSTALL_SPEC: str | None = None  # at release: "ttreg_hf @ ADDRESS OF THE SOURCE@COMMIT"; until then nothing is named


def install_hint(command: str = "pip install") -> str:
    """A comment behind an import, with two spaces before it; nothing while there is no address."""
    return f'  # {command} "{INSTALL_SPEC}"' if INSTALL_SPEC else ""
