"""Walks the big arrays of a JSON file item by item, with each item's place, so that no file is held whole."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from usam.errors import DatasetError

CHUNK_BYTES = 1 << 22
MAX_ITEM_BYTES = 1 << 26
_SPACE = " \t\n\r"
_ENDS = _SPACE + ",:]}"


class Item(NamedTuple):
    """One element of an array.

    Attributes:
        key:    the array's key in the file's object.
        value:  the element. Text in it that is not ASCII may be mangled; `value_at` reads it right.
        offset, length: where its bytes lie in the file.
    """

    key: str
    value: Any
    offset: int
    length: int


def items(path: Path, keys: Collection[str]) -> Iterator[Item]:
    """Elements of the arrays under `keys` in a file that holds one JSON object; the rest is passed over.

    Raises: DatasetError for a file that is missing, no JSON object, or breaks off; for a key that is missing or no
        array.
    """
    try:
        with path.open("rb") as file:
            yield from _Walk(path, file).items(keys)
    except OSError as error:
        why = "no such file" if isinstance(error, FileNotFoundError) else str(error)
        raise DatasetError("an annotation file in JSON", f"{path} ({why})", "fetch it again") from error


def value_at(path: Path, offset: int, length: int) -> Any:
    """The element that `items` found at a place.

    Raises: DatasetError if the file changed since.
    """
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return json.loads(file.read(length))
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path} as it was when it was opened", str(error), "open the data set again") from error


class _Walk:
    """Reads the file as Latin-1: every byte is a character there, so places in the text are places in the file."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path, self._file = path, file
        self._text, self._start, self._at = "", 0, 0
        self._decode = json.JSONDecoder().raw_decode

    def items(self, keys: Collection[str]) -> Iterator[Item]:
        missing = set(keys)
        self._take("{")
        while self._peek() != "}":
            key = self._value()
            self._take(":")
            if key in keys:
                missing.discard(key)
                self._take("[")
                while self._peek() != "]":
                    offset = self._start + self._at
                    value = self._value()
                    yield Item(key, value, offset, self._start + self._at - offset)
                    if self._peek() != "]":
                        self._take(",")
                self._take("]")
            else:
                self._value()
            if self._peek() != "}":
                self._take(",")
        if missing:
            raise DatasetError(f"the key {min(missing)!r} in {self._path}", "a file without it", "fetch it again")

    def _value(self) -> Any:
        self._peek()
        while True:
            why = "(a value without end)"
            try:
                value, end = self._decode(self._text, self._at)
                if end < len(self._text) and self._text[end] in _ENDS:  # else a number may go on
                    self._at = end
                    return value
            except (ValueError, RecursionError) as error:
                why = f"({error})"
            if len(self._text) - self._at > MAX_ITEM_BYTES or not self._more():
                raise self._broken(why)

    def _peek(self) -> str:
        """The next character that is no white space."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _SPACE:
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                raise self._broken("(it breaks off)")

    def _take(self, character: str) -> None:
        found = self._peek()
        if found != character:
            raise self._broken(f"({found!r} where {character!r} was due)")
        self._at += 1

    def _more(self) -> bool:
        chunk = self._file.read(CHUNK_BYTES)
        self._start += self._at
        self._text, self._at = self._text[self._at :] + chunk.decode("latin-1"), 0
        return bool(chunk)

    def _broken(self, why: str) -> DatasetError:
        got = f"{self._path}, byte {self._start + self._at} {why}"
        return DatasetError("a whole JSON file", got, "fetch it again")
