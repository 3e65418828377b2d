"""Frames of a finished video at model size, in whatever order they are asked for, decoded in blocks."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

from pipeline.settings import DecodeSettings
from pipeline.video.probe import VideoInfo
from pipeline.video.sample import Sample
from pipeline.video.stream import FrameStream

BLOCK_BYTES = 64 << 20
LEAST_FRAMES = 8
BLOCKS = 3


class FramesAgain:
    """Reads frames by position; neighbours of a frame that was read cost nothing.

    Args:
        info: the video. sample: which of its frames were labelled.
        size: side of the model's square input, px.
    Raises: VideoError while reading, for a video that is damaged or was changed.
    """

    def __init__(self, info: VideoInfo, settings: DecodeSettings, sample: Sample, size: int) -> None:
        self._info, self._settings, self._sample, self._size = info, settings, sample, size
        self._length = max(LEAST_FRAMES, BLOCK_BYTES // (3 * size * size))
        self._blocks: OrderedDict[int, NDArray[np.uint8]] = OrderedDict()

    def __call__(self, position: int) -> NDArray[np.uint8]:
        """The frame, (size, size, 3) uint8 RGB."""
        number, place = divmod(position, self._length)
        if number not in self._blocks:
            self._blocks[number] = self._decoded(number)
            if len(self._blocks) > BLOCKS:
                self._blocks.popitem(last=False)
        self._blocks.move_to_end(number)
        frame: NDArray[np.uint8] = self._blocks[number][place]
        return frame

    def _decoded(self, number: int) -> NDArray[np.uint8]:
        positions = range(number * self._length, min((number + 1) * self._length, len(self._sample)))
        wanted = [self._sample.frame_index(position) for position in positions]
        with FrameStream(self._info, self._settings, resize=self._size, indices=wanted) as stream:
            return np.stack([frame.rgb_hw3 for frame in stream])
