"""Which frames of a video are labelled: every one, every n-th, or so many a second, between two times."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import PromptError, PropagationError, VideoError

if TYPE_CHECKING:
    from pipeline.prompts import PromptSet
    from pipeline.propagate import FrameResult
    from pipeline.settings import DecodeSettings
    from pipeline.video.probe import VideoInfo
    from pipeline.video.stream import Frame

CLOCK_SECONDS = 0.000501
"""A frame up to half a millisecond early is on time: Matroska rounds times to the millisecond."""


def is_sampled(settings: DecodeSettings) -> bool:
    """Whether the settings ask for anything but every frame."""
    return settings.stride > 1 or not (settings.fps is settings.start_seconds is settings.end_seconds is None)


def select_frames(
    times_n: Sequence[float] | NDArray[np.float64], settings: DecodeSettings, always: Iterable[int] = ()
) -> NDArray[np.int64]:
    """The frames that the settings ask for.

    The range is [start_seconds, end_seconds) on presentation time, counted from the first frame. In it, `stride` takes
    its first frame and every stride-th after that; `fps` takes, for each tick start, start + 1 / fps, ..., the first
    frame at or after it (once, if it serves several ticks). A frame up to half a millisecond early counts as on time,
    because Matroska rounds times to the millisecond.

    Args:
        times_n: (n,) presentation times of all frames, seconds, ascending.
        settings: stride, fps, start_seconds, end_seconds.
        always: frames that are wanted whatever the rate: those that carry a prompt.
    Returns: source frame_index, ascending, each once.
    Raises:  PromptError if a frame of `always` lies outside of the range; VideoError if no frame lies in it.
    """
    times = np.asarray(times_n, dtype=np.float64)
    start = settings.start_seconds or 0.0
    since_n = times - times[:1] + CLOCK_SECONDS
    first = int(np.searchsorted(since_n, start)) if start > 0 else 0
    end = times.size if settings.end_seconds is None else int(np.searchsorted(since_n, settings.end_seconds))
    if first >= end:
        length = f"a video of {times.size} frames, the last at {times[-1] - times[0]:.3f} s" if times.size else "none"
        raise VideoError(f"frames {_range(settings)}", length, "correct decode.start_seconds and decode.end_seconds")
    if settings.fps is None:
        chosen = np.arange(first, end, settings.stride)
    else:
        ticks_n = np.floor((since_n[first:end] - start) * settings.fps)  # the number of the last tick at or before it
        chosen = first + np.flatnonzero(np.diff(ticks_n, prepend=-1) > 0)
    extra = np.array(sorted(set(always)), dtype=np.int64)
    for index in extra[(extra < first) | (extra >= end)]:
        where = f" ({times[index] - times[0]:.3f} s)" if 0 <= index < times.size else ""
        raise PromptError(
            f"prompts on frames {first}..{end - 1}, which lie {_range(settings)}",
            f"one on frame {index}{where}",
            "widen decode.start_seconds and decode.end_seconds, or leave that prompt out",
        )
    return np.union1d(chosen, extra).astype(np.int64)


def _range(settings: DecodeSettings) -> str:
    start, end = settings.start_seconds or 0.0, settings.end_seconds
    return f"at or after {start:g} s" if end is None else f"from {start:g} s to before {end:g} s"


class Sample:
    """The frames of one video that are labelled, by two numbers: position and frame_index.

    A position counts the frames that are shown to the model, 0, 1, 2, ...; a frame_index is the frame's number in the
    source, and the only one that rows, prompts, pictures and messages know. Where every frame is labelled the two are
    the same, and nothing is copied.

    Args:
        num_frames: frames of the source.
        indices_n: (n,) source frame_index of each position, ascending; None for every frame.
    """

    def __init__(self, num_frames: int, indices_n: NDArray[np.int64] | None = None) -> None:
        self.indices_n = indices_n
        self._count = num_frames if indices_n is None else int(indices_n.size)

    @classmethod
    def of(cls, info: VideoInfo, settings: DecodeSettings, prompts: PromptSet | None) -> Sample:
        """What the settings ask for of a probed video, with every frame that carries a prompt.

        Raises: PromptError, VideoError as `select_frames`.
        """
        if not is_sampled(settings):
            return cls(info.num_frames)
        from pipeline.video.probe import presentation_times

        prompted = {frame.frame_index for one in prompts.objects for frame in one.frames} if prompts else ()
        chosen = select_frames(presentation_times(info), settings, prompted)
        return cls(info.num_frames, None if chosen.size == info.num_frames else chosen)

    def __len__(self) -> int:
        return self._count

    @property
    def indices(self) -> list[int] | None:
        """What a `FrameStream` is asked for: source frame_index of each position; None for every frame."""
        return None if self.indices_n is None else self.indices_n.tolist()

    def frame_index(self, position: int) -> int:
        """The source's number of a frame that the model is shown."""
        return position if self.indices_n is None else int(self.indices_n[position])

    def position(self, frame_index: int) -> int:
        """Where a frame stands among those that the model is shown.

        Raises: VideoError for a frame that is not among them.
        """
        if self.indices_n is None:
            return frame_index
        found = int(np.searchsorted(self.indices_n, frame_index))
        if found == len(self) or self.indices_n[found] != frame_index:
            raise VideoError("a frame that was selected", f"frame {frame_index}", "change stride, fps or the range")
        return found

    def prompts(self, prompts: PromptSet) -> PromptSet:
        """The same prompts at positions."""
        if self.indices_n is None:
            return prompts
        objects = tuple(
            dataclasses.replace(
                one,
                frames=tuple(
                    dataclasses.replace(frame, frame_index=self.position(frame.frame_index)) for frame in one.frames
                ),
                earliest=int(np.searchsorted(self.indices_n, one.earliest)),
            )
            for one in prompts.objects
        )
        return dataclasses.replace(prompts, objects=objects)

    def frames(self, stream: Iterable[Frame]) -> Iterator[Frame]:
        """Frames of the source, renumbered by position."""
        if self.indices_n is None:
            yield from stream
        else:
            for frame in stream:
                yield dataclasses.replace(frame, index=self.position(frame.index))

    def results(self, results: Iterable[list[FrameResult]]) -> Iterator[list[FrameResult]]:
        """The model's results, renumbered by frame_index; what it refuses is told by frame_index too."""
        with self.told_by_frame_index():
            if self.indices_n is None:
                yield from results
            else:
                for of_frame in results:
                    yield [dataclasses.replace(one, frame_index=self.frame_index(one.frame_index)) for one in of_frame]

    @contextmanager
    def told_by_frame_index(self) -> Iterator[None]:
        """Translate "frame N" in refusals of code that knows positions only."""
        try:
            yield
        except (PropagationError, PromptError) as error:
            if self.indices_n is None:
                raise
            raise type(error)(*map(self._translated, (error.expected, error.got, error.next_step))) from error

    def _translated(self, text: str) -> str:
        def number(found: re.Match[str]) -> str:
            position = int(found[1])
            return f"frame {self.frame_index(position)}" if position < len(self) else found[0]

        return re.sub(r"\bframe (\d+)", number, text)
