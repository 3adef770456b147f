"""What evaluating needs beyond the package's own requirements."""

from ttreg_hf.known.packages import check_installed

_NEEDED = {"sklearn": "scikit-learn", "scipy": "scipy"}


def check_packages() -> None:
    """Refuse to start without them.

    Raises:
        ImportError: it names those that are missing, and how to get them.
    """
    check_installed("Evaluating", _NEEDED)
