"""Writes RGB frames as an MP4: H.264 where the build of PyAV has libx264, MPEG-4 part 2 otherwise."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import StorageError


def film_codec() -> str:
    """The encoder that this machine has: "libx264" or "mpeg4"."""
    for name in ("libx264", "mpeg4"):
        try:
            av.codec.Codec(name, "w")
        except av.codec.codec.UnknownCodecError:
            continue
        return name
    raise StorageError(
        "an encoder for MP4 (libx264 or mpeg4)", "neither in this build of PyAV", "reinstall av from its wheel"
    )


class FilmWriter:
    """An MP4 being written; a context manager that leaves nothing half-written when it fails.

    Args:
        path: target; written as `<name>.part` and renamed at the end.
        fps: frames per second of the source; 29.97 stays 30000/1001.
        quality: constant rate factor of x264, lower is better; 20 looks clean, 10 is near lossless.
    """

    def __init__(self, path: Path, fps: float, *, quality: int = 20) -> None:
        self.path, self.codec, self.num_frames = path, film_codec(), 0
        self._part = path.with_name(path.name + ".part")
        self._rate = _rate(fps)
        self._quality = quality
        self._stream: av.VideoStream | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._container = av.open(str(self._part), "w", format="mp4", options={"movflags": "+faststart"})
        except OSError as error:
            raise StorageError(f"a writable folder for {path}", str(error), "choose another --out") from error

    def __enter__(self) -> FilmWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            try:
                if kind is None and self._stream is not None:
                    self._container.mux(self._stream.encode(None))
            finally:
                self._container.close()
            if kind is None and self.num_frames:
                self._part.replace(self.path)
        except OSError as problem:
            if kind is None:
                raise self._error(problem) from problem
        finally:
            self._part.unlink(missing_ok=True)

    def append(self, rgb_hw3: NDArray[np.uint8]) -> None:
        """Add one frame; odd sizes are padded by one row or column (4:2:0 needs even ones).

        Args:    rgb_hw3: (H, W, 3) uint8, the same size every time.
        """
        height, width = rgb_hw3.shape[:2]
        if height % 2 or width % 2:
            rgb_hw3 = np.pad(rgb_hw3, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        if self._stream is None:
            self._stream = self._open(rgb_hw3.shape[1], rgb_hw3.shape[0])
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb_hw3), format="rgb24")
        frame.pts = self.num_frames
        frame.time_base = 1 / self._rate
        try:
            self._container.mux(self._stream.encode(frame))
        except OSError as problem:
            raise self._error(problem) from problem
        self.num_frames += 1

    def _error(self, problem: OSError) -> StorageError:
        return StorageError(
            f"to write {self.path}", problem.strerror or str(problem), "free space or choose another --out"
        )

    def _open(self, width: int, height: int) -> av.VideoStream:
        options = (
            {"crf": str(self._quality), "preset": "veryfast", "threads": "2"}
            if self.codec == "libx264"
            else {"qscale": "3"}
        )
        stream: Any = self._container.add_stream(self.codec, rate=self._rate, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        opened: av.VideoStream = stream
        return opened


def _rate(fps: float) -> Fraction:
    """The frame rate as the fraction that it most likely is; 25 where the source does not say."""
    if not 0.01 < fps < 1000:
        return Fraction(25)
    ntsc = Fraction(round(fps * 1.001) * 1000, 1001)
    if abs(float(ntsc) - fps) < 1e-3 and abs(round(fps) - fps) > 1e-6:
        return ntsc
    return Fraction(fps).limit_denominator(1000)
