"""Frames of a video file by index, decoded in order: asking onwards decodes on, asking back starts again."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np

from usam.datasets.samples import Image
from usam.errors import DatasetError


class VideoFile:
    """A video whose frames are counted from 0 in order of presentation. Opened at the first `frame`; one frame is kept.

    Args: path: any container that PyAV reads.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._decoding: Generator[Any, None, None] | None = None
        self._shown = 0
        self._last: Image | None = None

    def frame(self, frame_index: int) -> Image:
        """(H, W, 3) uint8 RGB, upright.

        Raises: DatasetError for a video that is missing, broken, or ends before this frame.
        """
        if self._decoding is None or frame_index < self._shown - 1:
            self.close()
            self._decoding = self._decode()
        try:
            while self._shown <= frame_index:
                picture = next(self._decoding, None)
                if picture is None:
                    got = f"{self._shown} frames"
                    raise DatasetError(f"frame {frame_index} in {self.path}", got, "fetch the video again")
                if self._shown == frame_index:
                    self._last = _upright(picture)
                self._shown += 1
        except BaseException:
            self.close()
            raise
        assert self._last is not None  # the frame before `_shown` was the one asked for, now or the last time
        return self._last.copy()

    def close(self) -> None:
        """Close the file; a later `frame` opens it again."""
        if self._decoding is not None:
            self._decoding.close()
        self._decoding, self._shown, self._last = None, 0, None

    def _decode(self) -> Generator[Any, None, None]:
        import av

        try:
            with av.open(str(self.path)) as container:
                if not container.streams.video:
                    raise DatasetError(f"a video in {self.path}", "no video stream", "fetch it again")
                yield from container.decode(video=0)
        except (av.FFmpegError, OSError) as error:
            why = "no such file" if isinstance(error, FileNotFoundError) else str(error)
            raise DatasetError("a readable video", f"{self.path} ({why})", "fetch it again") from error


def _upright(picture: Any) -> Image:
    """PyAV's frame as RGB, turned as its display matrix says."""
    rgb_hw3: Image = picture.to_ndarray(format="rgb24")
    turns = int(getattr(picture, "rotation", 0)) // 90 % 4
    return np.rot90(rgb_hw3, turns) if turns else rgb_hw3
