"""Keeps on scratch disk the frames that objects found by a later look are followed back through."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import ShapeError
from pipeline.video.spool import FrameSpool

if TYPE_CHECKING:
    from pipeline.discover import Discovery
    from pipeline.video.stream import Frame


class Lookback:
    """What objects that were found late are followed back through.

    That is the model-size frames since the latest look, and those between a look that found something and the look
    before it: the disk grows with the objects that are found, not with the video.

    Args:
        scratch: folder of the files.
        discovery: says on which frames it looks, and whether an object is followed back from there.
        size: side of the square frames in px.
    """

    def __init__(self, scratch: Path, discovery: Discovery, size: int) -> None:
        self._scratch, self._discovery, self._size = scratch, discovery, size
        self._segments: list[tuple[int, FrameSpool]] = []
        self._open: tuple[int, FrameSpool] | None = None
        self._held: Frame | None = None

    def append(self, frame: Frame) -> None:
        """Take the next frame, when the discovery has seen the one before."""
        if self._held is not None:
            self._settle(self._held)
        self._held = frame if self._discovery.rules.every_frames is not None else None

    def read(self, index: int) -> Frame:
        """A frame before a look that found something; no frame is appended after that.

        Raises: ShapeError for a frame that was not kept.
        """
        if self._held is not None:
            self._settle(self._held)
            self._held = None
        for first, spool in reversed(self._segments):
            if first <= index < first + len(spool):
                return spool.read(index)
        raise ShapeError("a frame before a look that found something", f"frame {index}", "look at it first")

    def close(self) -> None:
        """Give the disk space back."""
        for _, spool in [*self._segments, *([self._open] if self._open else [])]:
            spool.close()

    def __enter__(self) -> Lookback:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _settle(self, frame: Frame) -> None:
        """Spool a frame that was seen; if it was looked at, the look has decided about those before."""
        if self._open is not None and self._discovery.looks_at(frame.index):
            first, spool = self._open
            if self._discovery.reaches_back:
                self._segments.append((first, spool))
            else:
                spool.close()
            self._open = None
        if self._open is None:
            capacity = self._discovery.rules.every_frames or 1
            self._open = frame.index, FrameSpool(self._scratch, capacity, self._size)
        self._open[1].append(frame)
