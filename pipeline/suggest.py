"""The nearest known name to one that was mistyped, for messages that say what was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """The choice most like a word, whatever its case.

    Args:
        word: what was typed.
        choices: the names that exist.
    Returns: the nearest choice, or None when none is alike.
    """
    by_lower = {choice.lower(): choice for choice in choices}
    matches = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[matches[0]] if matches else None


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """A next step for a mistyped name: the nearest choice, else all of them."""
    known = sorted(choices)
    match = nearest(word, known)
    return f"did you mean {match!r}?" if match else f"choose one of {', '.join(known)}"
