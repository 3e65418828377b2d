"""Keeps on scratch disk the frames that objects found by a later look are followed back through."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pipeline.errors import DiskSpaceError, ShapeError
from pipeline.video.spool import FrameSpool
from pipeline.video.stream import Frame

if TYPE_CHECKING:
    from pipeline.discover import Discovery


class Lookback:
    """What objects that were found late are followed back through.

    That is the model-size frames since the latest look, and those between a look that found something and the look
    before it: the disk grows with the objects that are found, not with the video.

    Args:
        scratch: folder of the files.
        discovery: says on which frames it looks, and whether an object is followed back from there.
        size: side of the square frames in px.
        stays: whether the files get names and stay, so that a later run can go on from where one died.
    """

    def __init__(self, scratch: Path, discovery: Discovery, size: int, *, stays: bool = False) -> None:
        self._scratch, self._discovery, self._size, self._stays = scratch, discovery, size, stays
        self._segments: list[tuple[int, FrameSpool]] = []
        self._open: tuple[int, FrameSpool] | None = None
        self._held: Frame | None = None
        self._marked: set[int] = set()  # first frames of the files that the latest mark names,
        self._saved: set[int] = set()  # and the latest mark that is safe

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

    def mark(self) -> dict[str, Any]:
        """Put every frame on the disk for good; what `restore` takes."""
        held = self._held and {
            "index": self._held.index, "pts_seconds": self._held.pts_seconds,
            "rgb_hw3": torch.from_numpy(np.array(self._held.rgb_hw3)),
        }  # fmt: skip
        self._marked = {first for first, _ in self._all()}
        return {
            "spools": [(first, spool.capacity_frames, spool.mark()) for first, spool in self._all()],
            "open": self._open is not None,
            "held": held,
        }

    def restore(self, mark: Mapping[str, Any]) -> None:
        """Take what another process left, as of its mark.

        Raises: StorageError if a file is not what it was then.
        """
        for first, capacity, of_spool in mark["spools"]:
            spool = self._new_spool(first, capacity)
            self._segments.append((first, spool))
            spool.restore(of_spool)
        self._open = self._segments.pop() if mark["open"] else None
        if (held := mark["held"]) is not None:
            self._held = Frame(held["index"], held["pts_seconds"], held["rgb_hw3"].numpy())
        self._marked = self._saved = {first for first, _ in self._all()}

    def saved(self) -> None:
        """The latest mark is safe: remove the files that only the one before it named."""
        for first in self._saved - self._marked:
            self._path(first).unlink(missing_ok=True)
        self._saved = self._marked

    def close(self) -> None:
        """Give the disk space back (files with a name stay)."""
        with ExitStack() as stack:
            for _, spool in self._all():
                stack.callback(spool.close)

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
                if self._stays and first not in self._saved:
                    self._path(first).unlink(missing_ok=True)
            self._open = None
        try:
            if self._open is None:
                capacity = self._discovery.frames_to_next_look(frame.index)
                self._open = frame.index, self._new_spool(frame.index, capacity)
            self._open[1].append(frame)
        except DiskSpaceError as error:
            step = "free some, set output.scratch_dir to a larger disk, or set prompts.auto.every_frames lower"
            raise DiskSpaceError(error.expected, error.got, step) from error

    def _all(self) -> list[tuple[int, FrameSpool]]:
        return [*self._segments, *([self._open] if self._open else [])]

    def _new_spool(self, first: int, capacity: int) -> FrameSpool:
        return FrameSpool(self._scratch, capacity, self._size, path=self._path(first) if self._stays else None)

    def _path(self, first: int) -> Path:
        return self._scratch / f"frames-{first}"
