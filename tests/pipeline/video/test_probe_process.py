"""The probing process: it may hang, die or meet a bomb, and PyAV alone serves where decord is missing."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import VideoError
from pipeline.settings import DecodeSettings
from pipeline.video.orientation import TURNS, Orientation, orientation
from pipeline.video.probe import presentation_times, probe_video
from pipeline.video.stream import FrameStream

from .conftest import decode_directly, write_video

BEFORE = "import sys, os, time; sys.path[:] = {path!r}; "


def replace_child(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    monkeypatch.setattr("pipeline.video.process.CHILD_CODE", BEFORE + code)


def test_a_hanging_probe_is_ended(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_child(monkeypatch, "time.sleep(60)")
    started = time.monotonic()
    with pytest.raises(VideoError, match=r"expected progress on .* within 0\.5 s") as caught:
        probe_video(clip, DecodeSettings(watchdog_seconds=0.5))
    assert time.monotonic() - started < 10
    assert caught.value.path == clip


def test_a_crashing_probe_is_one_line(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_child(monkeypatch, "os.abort()")
    with pytest.raises(VideoError, match=r"expected a process to probe .*, got its death \(signal SIGABRT"):
        probe_video(clip, DecodeSettings())


@pytest.mark.skipif(sys.platform != "linux", reason="address space is limited on Linux")
def test_a_decoder_that_eats_memory_dies_alone(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = probe_video(clip, DecodeSettings())
    replace_child(
        monkeypatch,
        "from {module} import main; from pipeline.video import child\n"
        "child._frames = lambda job: bytearray(64 << 30)\nmain({arguments})",
    )
    with FrameStream(info, DecodeSettings()) as stream, pytest.raises(VideoError, match="MemoryError"):
        list(stream)


def test_neither_torch_nor_pydantic_is_imported_by_the_processes() -> None:
    import subprocess

    code = (
        "import sys, pipeline.video.inspect, pipeline.video.child, pipeline.video.pyav\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'pydantic', 'pandas', 'PIL', 'pyarrow', 'decord')))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_pixels": 64 * 48 - 1}, "expected at most 3071 pixels a frame, got 3072"),
        ({"max_seconds": 1.5}, r"expected at most 1.5 s, got 1\.\d s"),
    ],
)
def test_bombs_are_refused_before_they_are_decoded(clip: Path, limits: dict[str, float], message: str) -> None:
    with pytest.raises(VideoError, match=message):
        probe_video(clip, DecodeSettings(**limits))  # type: ignore[arg-type]


def test_without_decord_pyav_serves_alone(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_child(
        monkeypatch,
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'decord' else find(name, *rest)\n"
        "sys.modules['decord'] = None\nfrom {module} import main; main({arguments})",
    )
    for wanted in ("auto", "decord", "pyav"):
        settings = DecodeSettings(decoder=wanted)  # type: ignore[arg-type]
        info = probe_video(clip, settings)
        assert info.decoder == "pyav"
        assert wanted == "pyav" or info.decoder_reason == "decord is not installed"
        with FrameStream(info, settings) as stream:
            frames = list(stream)
        np.testing.assert_array_equal(np.stack([one.rgb_hw3 for one in frames]), np.stack(decode_directly(clip)))
        np.testing.assert_array_equal([one.pts_seconds for one in frames], presentation_times(info))


def test_start_and_indices_outside_are_refused(clip: Path) -> None:
    info = probe_video(clip, DecodeSettings())
    for start in (-1, 40):
        with pytest.raises(VideoError, match=r"frame indices in 0\.\.39"):
            FrameStream(info, DecodeSettings(), start=start)


class FakeFrame:
    """What `orientation` looks at, with a display matrix."""

    def __init__(self, a: float, b: float, c: float, d: float) -> None:
        values = np.array([a * 65536, b * 65536, 0, c * 65536, d * 65536, 0, 0, 0, 1 << 30], np.int32)
        self.side_data = [MatrixData(values.tobytes())]


class MatrixData(bytes):
    class type:
        name = "DISPLAYMATRIX"


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize(("ab", "turns"), TURNS.items())
def test_all_eight_orientations_move_pixels_as_the_matrix_says(ab: tuple[int, int], turns: int, mirrored: bool) -> None:
    a, b = ab
    c, d = -b, a
    if mirrored:
        a, c = -a, -c
    turn = orientation(Path("clip.mp4"), FakeFrame(a, b, c, d))
    assert turn == Orientation(90 * turns, mirrored)
    picture = np.arange(6, dtype=np.uint8).reshape(2, 3, 1)
    moved = {(a * x + c * y, b * x + d * y): picture[y, x, 0] for y in range(2) for x in range(3)}
    left, top = min(x for x, _ in moved), min(y for _, y in moved)
    upright = turn.apply(picture)
    assert {(x - left, y - top): value for (x, y), value in moved.items()} == {
        (x, y): upright[y, x, 0] for y in range(upright.shape[0]) for x in range(upright.shape[1])
    }


@pytest.mark.parametrize("matrix", [(0.7, 0.7, -0.7, 0.7), (1, 0, 0, 2), (0, 0, 0, 0), (1, 0.1, 0, 1)])
def test_other_matrices_are_refused(matrix: tuple[float, float, float, float]) -> None:
    with pytest.raises(VideoError, match="a picture turned by a multiple of 90 degrees"):
        orientation(Path("clip.mp4"), FakeFrame(*matrix))


def test_a_turn_by_45_degrees_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="encode it upright"):
        probe_video(write_video(tmp_path / "clip.mp4", 2, rotation=45), DecodeSettings())
