"""Signs of damage that decoders do not raise: what libav writes to its log while it conceals, and impossible frames.

A decoder that meets damage logs it before it gives out the frame that it concealed. So a frame is clean if the log held
nothing when it came out, and the first line ends what can be trusted. Only what libav calls an error counts; no good
file of the test corpus causes one.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from pipeline.errors import VideoError

STDERR_FD = 2
LOG_LINE = re.compile(rb"^\[(?P<who>[\w,. ]+) @ 0x[0-9a-f]+\] *(?P<text>.*)$", re.MULTILINE)
DECORD_RECOVERY = re.compile(rb"more than \d+ frames corrupted and recovered")
AGAIN = "copy or download it again, or encode it again; decode.on_damage=keep_good_prefix labels what comes before"


class LibavLog:
    """The errors that libav logged in this process, whose stderr is a file (`process.ChildProcess` sees to it).

    Args: ignored: names of codecs whose errors do not matter, those of audio for example.
    """

    def __init__(self, ignored: frozenset[str] = frozenset()) -> None:
        self.ignored = ignored
        self._read = os.fstat(STDERR_FD).st_size

    @staticmethod
    def listen() -> None:
        """Have PyAV's libav log errors to stderr, as libav does on its own."""
        import av.logging

        av.logging.restore_default_callback()
        av.logging.set_libav_level(av.logging.ERROR)

    def first_error(self, besides: str = "") -> str | None:
        """The first error since the last look, or None; costs one system call when there is nothing new.

        Args: besides: a codec whose errors do not count this time.
        """
        waiting = os.fstat(STDERR_FD).st_size - self._read
        if not waiting:
            return None
        new = os.pread(STDERR_FD, waiting, self._read)
        new = new[: new.rfind(b"\n") + 1]  # libav writes a line in pieces: an unfinished one waits for the next look
        self._read += len(new)
        for found in LOG_LINE.finditer(new):
            who, text = found["who"].decode(), found["text"].decode(errors="replace")
            if who not in self.ignored and who != besides:
                return f"{who}: {' '.join(text.split())[:120]}"
        return "decord recovered lost frames" if DECORD_RECOVERY.search(new) else None


def other_codecs(container: Any, stream: Any) -> frozenset[str]:
    """Names of the codecs of the streams besides `stream`."""
    contexts = (one.codec_context for one in container.streams if one.index != stream.index)
    return frozenset(context.name for context in contexts if context is not None)


class FrameCheck:
    """Looks at every frame as the decoder gives it out, and raises at the first that cannot be trusted.

    Args:
        path: for messages.
        log: of this process; None where its stderr is not ours.
    """

    def __init__(self, path: Path, log: LibavLog | None) -> None:
        self._path, self._log = path, log
        self._first: tuple[int, int, str] | None = None
        self._pts: int | None = None

    def look(self, index: int, what: str = "damage") -> None:
        """Raise VideoError if something was logged before frame `index` came out."""
        error = self._log.first_error() if self._log is not None else None
        if error is not None:
            raise self.damaged(index, f"{what} ({error})")

    def frame(self, index: int, frame: Any) -> None:
        """Check one of PyAV's frames.

        Raises: VideoError for a logged error, a damaged frame, another size or format than the first, or a time that
            does not come after the one before.
        """
        self.look(index)
        if frame.is_corrupt:
            raise self.damaged(index, "damaged picture")
        kind = (frame.width, frame.height, frame.format.name)
        self._first = self._first or kind
        if kind != self._first:
            width, height, name = self._first
            raise VideoError(
                f"frames of {width}x{height} {name} throughout",
                f"{kind[0]}x{kind[1]} {kind[2]} at frame {index} of {self._path}",
                "encode the video at one size, or set decode.on_damage to keep_good_prefix",
                path=self._path,
                frame=index,
            )
        if frame.pts is not None:
            if self._pts is not None and frame.pts <= self._pts:
                again = "repeated" if frame.pts == self._pts else "going back"
                raise self.damaged(index, f"time {again}")
            self._pts = frame.pts

    def damaged(self, index: int, what: str) -> VideoError:
        """The error that says so."""
        got = f"{what} at frame {index} of {self._path}"
        return VideoError("an undamaged video", got, AGAIN, path=self._path, frame=index)
