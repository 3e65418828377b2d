"""What libav logs is read whole, line by line."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.video import damage
from pipeline.video.damage import LibavLog

AAC = b"[aac @ 0x1] channel element 0.0 is not allocated\n"
H264 = b"[h264 @ 0x2] error while decoding MB 3 4\n"


def test_an_error_behind_many_that_do_not_matter_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "stderr").open("w+b", buffering=0) as file:
        monkeypatch.setattr(damage, "STDERR_FD", file.fileno())
        log = LibavLog(frozenset({"aac"}))
        file.write(AAC * 1000)
        assert log.first_error() is None
        file.write(AAC * 1000 + H264)
        assert log.first_error() == "h264: error while decoding MB 3 4"
        assert log.first_error() is None


def test_a_line_that_is_being_written_waits_for_the_next_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "stderr").open("w+b", buffering=0) as file:
        monkeypatch.setattr(damage, "STDERR_FD", file.fileno())
        log = LibavLog()
        file.write(H264[:20])
        assert log.first_error() is None
        file.write(H264[20:])
        assert log.first_error() == "h264: error while decoding MB 3 4"
