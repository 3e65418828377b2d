"""One wrong byte: AV1 and HEVC with checksums notice it, H.264 half of the time, VP9 and plain HEVC hardly ever."""

from __future__ import annotations

from pathlib import Path

import pytest

from .corpus import have_ffmpeg, make_good
from .flips import OUTCOMES, measure_apart

FLIPS = 60


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "decoder", "most_silent"),
    [("h264.mp4", "decord", 0.65), ("h264.mp4", "pyav", 0.60), ("hevc.mkv", "pyav", 0.05), ("av1.mp4", "pyav", 0.05)],
)
def test_silently_wrong_frames_stay_within_the_stated_bound(
    name: str, decoder: str, most_silent: float, tmp_path: Path
) -> None:
    if not have_ffmpeg():
        pytest.skip("no ffmpeg: apt-get install ffmpeg")
    counts = measure_apart(make_good(name, tmp_path), decoder, FLIPS)
    assert sum(counts[one] for one in OUTCOMES) == FLIPS
    assert counts["silent"] <= most_silent * FLIPS
