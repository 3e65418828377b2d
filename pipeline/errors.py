"""The pipeline's errors, one class per thing that can be wrong; all are `MasksieveError`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from usam.errors import HeadError, MasksieveError, ShapeError

__all__ = [
    "DiskSpaceError",
    "ForgottenError",
    "HeadError",
    "MasksieveError",
    "ModelError",
    "PromptError",
    "PropagationError",
    "SettingsError",
    "ShapeError",
    "StorageError",
    "TimeLimitError",
    "UnavailableError",
    "VideoError",
]


class VideoError(MasksieveError):
    """A video that is missing, unreadable, damaged or too large.

    Args:
        path: the file.
        frame: frame_index of the first frame that cannot be trusted; those before it are good.
        frames: how many there are, where that is what is wrong.
    """

    def __init__(
        self,
        expected: str,
        got: str,
        next_step: str,
        *,
        path: Path | None = None,
        frame: int | None = None,
        frames: int | None = None,
    ) -> None:
        super().__init__(expected, got, next_step)
        self.path, self.frame, self.frames = path, frame, frames

    def __reduce__(self) -> tuple[Any, ...]:
        """Keep all parts when an error crosses a process boundary."""
        return _video_error, (self.expected, self.got, self.next_step, self.path, self.frame, self.frames)


def _video_error(
    expected: str, got: str, next_step: str, path: Path | None, frame: int | None, frames: int | None
) -> VideoError:
    return VideoError(expected, got, next_step, path=path, frame=frame, frames=frames)


class ForgottenError(VideoError):
    """A video that was removed on request (`masksieve forget`) and may not come back."""


class TimeLimitError(VideoError):
    """A video that was not done within its time."""


class PromptError(MasksieveError):
    """Prompts that are missing, malformed, or do not fit their video."""


class ModelError(MasksieveError):
    """A model that is unknown, missing, or whose checkpoint does not fit."""


class SettingsError(MasksieveError):
    """A setting that is unknown or out of range."""


class StorageError(MasksieveError):
    """An object store that cannot be reached, read or written."""


class UnavailableError(StorageError):
    """A store that did not answer, or answered with passing errors, for as long as was worth waiting."""


class DiskSpaceError(StorageError):
    """Too little scratch disk for the job."""


class PropagationError(MasksieveError):
    """A propagation that cannot go on, for example after a non-finite value."""
