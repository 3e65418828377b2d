"""Errors that say what was expected, what came, and what to do next."""

from __future__ import annotations

from typing import Any


class MasksieveError(Exception):
    """A refusal that a person can act on.

    Args:
        expected: what would have been right.
        got: what was found instead.
        next_step: what the reader can do about it.
    """

    def __init__(self, expected: str, got: str, next_step: str) -> None:
        super().__init__(f"expected {expected}, got {got}; {next_step}")
        self.expected, self.got, self.next_step = expected, got, next_step

    def rename(self, name: str, told: str) -> None:
        """Say `told` wherever the message has `name`, such as a video's address for the file that it lies in."""
        parts = (part.replace(name, told) for part in (self.expected, self.got, self.next_step))
        MasksieveError.__init__(self, *parts)

    def __reduce__(self) -> tuple[Any, ...]:
        """Keep the three parts when an error crosses a process boundary."""
        return type(self), (self.expected, self.got, self.next_step)


class ShapeError(MasksieveError):
    """An array of the wrong shape or dtype."""


class HeadError(MasksieveError):
    """A head bank that is missing, damaged, or made for another model."""


class DatasetError(MasksieveError):
    """A data set whose files are missing, odd, or not in the layout that it is published in."""


class EvaluationError(MasksieveError):
    """Columns that cannot be judged: of unequal length, not finite, or with no row left."""
