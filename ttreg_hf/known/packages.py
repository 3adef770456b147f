"""Packages that a part of ttreg_hf needs beyond its own requirements: found out before the work, by their names."""

import importlib.util
from collections.abc import Mapping


def check_installed(what: str, needed: Mapping[str, str]) -> None:
    """Refuse to start without them; nothing is imported.

    Args:
        what: that needs them, to begin a sentence with.
        needed: module -> name on the package index.

    Raises:
        ImportError: it names those that are missing, and how to get them.
    """
    missing = [name for module, name in needed.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise ImportError(
            f"{what} needs {', '.join(needed.values())}; missing here: {', '.join(missing)}. Install them with "
            f"`pip install {' '.join(missing)}`."
        )
