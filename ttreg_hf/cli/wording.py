"""Messages of the library in the words of a verb: its own options, instead of Python's arguments.

The library names both, as in "`image_column` (`--image-column`)" or "`--force` (`force=True`)".
"""

import re
from collections.abc import Mapping

_OPTION_FIRST = re.compile(r"(`(?:--|ttreg )[^`]*`) \(`[^`]*`\)")
_OPTION_SECOND = re.compile(r"`[^`]*` \((`(?:--|ttreg )[^`]*`)\)")
_NAME = re.compile(r"`([a-z][a-z_]*)`")
_OPTION = re.compile(r"`(--[a-z-]+)[^`]*`")
_SENTENCE = re.compile(r"(?<=[.!?]) +(?=[A-Z`])")


def in_own_options(message: str, options: Mapping[str, str]) -> str:
    """The message without Python's arguments, and without remedies that the verb does not have.

    Args:
        message: of the library.
        options: of the verb, by the name of its parameter: `{"image_column": "--image-column"}`.
    """
    message = _OPTION_SECOND.sub(r"\1", _OPTION_FIRST.sub(r"\1", message))
    message = _NAME.sub(lambda found: f"`{options.get(found[1], found[1])}`", message)
    sentences = [_without_others(sentence, frozenset(options.values())) for sentence in _SENTENCE.split(message)]
    return " ".join(filter(None, sentences))


def _without_others(sentence: str, known: frozenset[str]) -> str:
    """A sentence without the alternative that names an option of another verb; empty, if it has no other."""
    for option in [found[0] for found in _OPTION.finditer(sentence) if found[1] not in known]:
        if option in sentence:
            sentence = re.sub(rf",? or [^.,;]*{re.escape(option)}[^.,;]*", "", sentence)
        if option in sentence:
            return ""
    return sentence
