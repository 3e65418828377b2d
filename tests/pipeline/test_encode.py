"""The encode stage: what went wrong in its thread is told, and goes on being told."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.encode import EncodeStage, PassWriters, RowContext
from pipeline.errors import DiskSpaceError

CONTEXT = RowContext("v", "file:///v.mp4", {}, 4, 4)


class Full:
    """A writer whose disk is full the first time."""

    def __init__(self) -> None:
        self.calls = 0

    def append(self, _: Any) -> None:
        self.calls += 1
        if self.calls == 1:
            raise DiskSpaceError("room for the scratch rows", "a full disk", "free space")


def test_nothing_comes_after_rows_that_are_missing() -> None:
    stage = EncodeStage(CONTEXT, PassWriters(Full()), 1)  # type: ignore[arg-type]
    stage.submit(0.0, [])
    for _ in range(2):
        with pytest.raises(DiskSpaceError):
            stage.drain()
    with pytest.raises(DiskSpaceError):
        stage.__exit__(None, None, None)
