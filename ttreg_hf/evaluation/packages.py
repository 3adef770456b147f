"""What evaluating needs beyond the package's own requirements."""

import importlib.util

_NEEDED = {"sklearn": "scikit-learn", "scipy": "scipy"}


def check_packages() -> None:
    """Refuse to start without them.

    Raises:
        ImportError: it names those that are missing, and how to get them.
    """
    missing = [name for module, name in _NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise ImportError(
            f"Evaluating needs {', '.join(_NEEDED.values())}; missing here: {', '.join(missing)}. Install them with "
            f"`pip install {' '.join(missing)}`."
        )
