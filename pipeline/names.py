"""Names that other people gave to files: which of them can be handled, and how any of them is shown."""

from __future__ import annotations

import os
from pathlib import Path


def unhandled_name(key: str) -> str | None:
    """Why a video of this key in a store cannot be handled; None if it can.

    It could leave its folder, or be read as something else by what it passes through.
    """
    if any(part in ("", ".", "..") for part in key.split("/")) or "\\" in key:
        return "its name has empty or dot parts, or a backslash"
    return unprintable_name(key)


def unprintable_name(name: str) -> str | None:
    """Why a name cannot be a line of a log or a cell of a table; None if it can."""
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in name):
        return "its name has control characters"
    try:
        name.encode()
    except UnicodeEncodeError:
        return "its name is not UTF-8"
    return None


def shown(name: str) -> str:
    """A name as it can be printed and written down, whatever is in it."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in name)


def local_path(name: str) -> Path:
    """The file or folder of this name; a `~` in front is a home, unless that is what something here is called."""
    path = Path(name)
    return path if os.path.lexists(path) else Path(os.path.expanduser(name))
