"""What the Hub's refusals mean to whoever meets them."""

from collections.abc import Generator
from contextlib import contextmanager

from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError


@contextmanager
def explaining_access(name: str, *, why: str = "") -> Generator[None]:
    """Turns the refusal of a gated repository into one message that says how to get in.

    Args:
        name: Hub id of the repository.
        why: what it is needed for; begins the message.

    Raises:
        PermissionError: the repository is gated, and this account is not let in.
    """
    try:
        yield
    except OSError as error:  # what transformers makes of it; the Hub's own errors are OSErrors too
        if not any(isinstance(cause, GatedRepoError) for cause in _causes(error)):
            raise
        raise PermissionError(
            f"{why}{name} is gated. Accept its terms at {constants.ENDPOINT}/{name}, log in with `hf auth login` or "
            "give a `--token` (`token=...`), and try again."
        ) from error


def _causes(error: BaseException | None) -> list[BaseException]:
    causes: list[BaseException] = []
    while error is not None and error not in causes:
        causes.append(error)
        error = error.__cause__ or error.__context__
    return causes
