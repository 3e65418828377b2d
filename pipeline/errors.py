"""The pipeline's errors, one class per thing that can be wrong; all are `MasksieveError`."""

from __future__ import annotations

from usam.errors import HeadError, MasksieveError, ShapeError

__all__ = [
    "DiskSpaceError",
    "HeadError",
    "MasksieveError",
    "ModelError",
    "PromptError",
    "PropagationError",
    "SettingsError",
    "ShapeError",
    "StorageError",
    "VideoError",
]


class VideoError(MasksieveError):
    """A video that is missing, unreadable, damaged or too large."""


class PromptError(MasksieveError):
    """Prompts that are missing, malformed, or do not fit their video."""


class ModelError(MasksieveError):
    """A model that is unknown, missing, or whose checkpoint does not fit."""


class SettingsError(MasksieveError):
    """A setting that is unknown or out of range."""


class StorageError(MasksieveError):
    """An object store that cannot be reached, read or written."""


class DiskSpaceError(StorageError):
    """Too little scratch disk for the job."""


class PropagationError(MasksieveError):
    """A propagation that cannot go on, for example after a non-finite value."""
