"""The words of a command line as people type them, before Hydra reads them."""

import re
from collections.abc import Sequence

from feature_extraction.errors import InputError

FLAGS_WITH_VALUE = frozenset(
    {"--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp", "--package", "-p", "--cfg", "-c"}
)
BARE = {"search": "text", "view": "folder"}
"""Commands that take one word without a key, and the key it stands for."""


def flags_first(words: Sequence[str]) -> list[str]:
    """Hydra's flags before the overrides, so that ``train fold=0,1 -m seed=0,1`` means what it says."""
    flags: list[str] = []
    overrides: list[str] = []
    waits_for_value = False
    for word in words:
        is_flag = word.startswith("-")
        (flags if is_flag or waits_for_value else overrides).append(word)
        waits_for_value = word in FLAGS_WITH_VALUE
    return flags + overrides


def with_key(words: Sequence[str]) -> list[str]:
    """The same words, a bare one of a command in `BARE` with its key: ``search "keratin pearls" …``.

    Args:
        words: The command and what follows it.

    Raises:
        InputError: There are two of them, or one and its key.
    """
    key = BARE.get(words[0])
    if key is None:
        return list(words)
    places = [
        place
        for place, word in enumerate(words)
        if place and words[place - 1] not in FLAGS_WITH_VALUE and not re.match(r"-|~|\+*[\w./@]+=", word)
    ]
    if not places:
        return list(words)
    if len(places) > 1:
        first, second = (words[place] for place in places[:2])
        raise InputError(
            f"{words[0]}: {first!r} and {second!r} are two words, expected one {key}; put a phrase in quotes"
        )
    if any(word.startswith(f"{key}=") for word in words):
        raise InputError(f"{words[0]}: {words[places[0]]!r} stands for {key}=…, which is given too; give one of them")
    return [f"{key}={quoted(word)}" if place == places[0] else word for place, word in enumerate(words)]


def quoted(text: str) -> str:
    """A text in quotes, so that Hydra reads no syntax in it."""
    escaped = re.sub(r"(\\+)(?='|$)", r"\1\1", text).replace("'", "\\'")
    return f"'{escaped}'"
