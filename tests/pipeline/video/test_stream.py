"""The frame stream: exact frames, bounded memory, and nothing left behind however it ends."""

from __future__ import annotations

import dataclasses
import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import VideoError
from pipeline.settings import DecodeSettings
from pipeline.video.probe import VideoInfo, probe_video
from pipeline.video.ring import ring_slots
from pipeline.video.stream import Frame, FrameStream

from .conftest import CLIPS, decode_directly, write_video

needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="reads Linux's /proc")


def open_things() -> tuple[set[str], int, int]:
    """Shared memory, threads and children of this process, as the kernel and Python see them."""
    targets = {f"{n}:{os.readlink(f'/proc/self/fd/{n}')}" for n in os.listdir("/proc/self/fd") if _is_open(n)}
    memory = {t for t in targets if "memfd" in t or "socket" in t}
    memory |= {line for line in Path("/proc/self/maps").read_text().splitlines() if "masksieve" in line}
    threads = [t for t in threading.enumerate() if t.name == "masksieve-frames"]
    return memory, len(threads), len(children())


def _is_open(number: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{number}")


def children() -> list[int]:
    tasks = Path("/proc/self/task")
    return [int(pid) for task in tasks.iterdir() for pid in (task / "children").read_text().split()]


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """Fail when a test leaves shared memory, a socket, a thread or a child behind."""
    gc.collect()
    files, threads, running = open_things()
    yield
    gc.collect()
    files_after, threads_after, running_after = open_things()
    assert files_after - files == set()  # what an earlier test left may well go away meanwhile
    assert threads_after <= threads
    assert running_after <= running


def wait_for(condition: object, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "nothing happened in time"
        time.sleep(0.02)


@needs_proc
@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("decoder", ["decord", "pyav"])
def test_frames_equal_a_direct_decode(clip: Path, decoder: str) -> None:
    settings = DecodeSettings(decoder=decoder)  # type: ignore[arg-type]
    info = probe_video(clip, settings)
    assert info.decoder == decoder
    with FrameStream(info, settings) as stream:
        frames = list(stream)
    assert [frame.index for frame in frames] == list(range(40))
    assert [frame.pts_seconds for frame in frames] == [float(i) / 25 for i in range(40)]
    np.testing.assert_array_equal(np.stack([frame.rgb_hw3 for frame in frames]), np.stack(decode_directly(clip)))


def test_resizing_is_pil_bicubic(clip: Path) -> None:
    info = probe_video(clip, DecodeSettings())
    with FrameStream(info, DecodeSettings(), resize=40) as stream:
        frames = list(stream)
    for frame, direct in zip(frames, decode_directly(clip), strict=True):
        expected = np.asarray(Image.fromarray(direct).resize((40, 40), Image.Resampling.BICUBIC))
        np.testing.assert_array_equal(frame.rgb_hw3, expected)


@pytest.mark.parametrize("decoder", ["decord", "pyav"])
def test_only_the_asked_frames_come(clip: Path, decoder: str) -> None:
    settings = DecodeSettings(decoder=decoder, queue_frames=2)  # type: ignore[arg-type]
    wanted = [0, 3, 4, 20, 39]
    with FrameStream(probe_video(clip, settings), settings, indices=wanted) as stream:
        frames = list(stream)
    direct = decode_directly(clip)
    assert [frame.index for frame in frames] == wanted
    assert all(np.array_equal(frame.rgb_hw3, direct[frame.index]) for frame in frames)


def test_no_frames_asked_for_is_an_empty_stream(clip: Path) -> None:
    with FrameStream(probe_video(clip, DecodeSettings()), DecodeSettings(), indices=[]) as stream:
        assert list(stream) == []


@pytest.mark.parametrize("indices", [[3, 2], [1, 1], [-1, 2], [0, 40]])
def test_impossible_indices_are_refused(clip: Path, indices: list[int]) -> None:
    with pytest.raises(VideoError, match="frame indices"):
        FrameStream(probe_video(clip, DecodeSettings()), DecodeSettings(), indices=indices)


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("one.mp4", {"num_frames": 1}),
        ("odd.mp4", {"pix_fmt": "yuv444p", "width": 63, "height": 47}),
        ("odd.avi", {"codec": "mpeg4", "width": 63, "height": 47}),
        ("ts.ts", {}),
        ("clip.webm", {"codec": "libvpx-vp9"}),
    ],
)
def test_unusual_files_come_out_whole(tmp_path: Path, name: str, kwargs: dict[str, object]) -> None:
    path = write_video(tmp_path / name, **kwargs)  # type: ignore[arg-type]
    with FrameStream(probe_video(path, DecodeSettings()), DecodeSettings()) as stream:
        frames = list(stream)
    np.testing.assert_array_equal(np.stack([f.rgb_hw3 for f in frames]), np.stack(decode_directly(path)))


@pytest.mark.parametrize(("rotation", "turns"), [(90, 1), (180, 2), (-90, 3)])
def test_rotation_is_applied(tmp_path: Path, rotation: int, turns: int) -> None:
    path = write_video(tmp_path / "clip.mp4", 2, rotation=rotation)
    info = probe_video(path, DecodeSettings())
    with FrameStream(info, DecodeSettings()) as stream:
        first = next(stream)
    assert first.rgb_hw3.shape == (info.height, info.width, 3)
    np.testing.assert_array_equal(first.rgb_hw3, np.rot90(decode_directly(path)[0], turns))


@needs_proc
@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("decoder", ["decord", "pyav"])
def test_a_killed_child_is_a_video_error(clip: Path, decoder: str) -> None:
    settings = DecodeSettings(decoder=decoder, queue_frames=2)  # type: ignore[arg-type]
    message = r"expected the \w+ process to read .*, got its death at frame \d+ \(signal SIGKILL"
    with FrameStream(probe_video(clip, settings), settings) as stream:
        for _ in range(3):
            next(stream)
        assert stream.child_pid is not None
        os.kill(stream.child_pid, signal.SIGKILL)
        with pytest.raises(VideoError, match=message):
            list(stream)
        assert list(stream) == []


@needs_proc
@pytest.mark.usefixtures("nothing_left")
def test_a_consumer_that_raises_leaves_nothing(clip: Path) -> None:
    settings = DecodeSettings(queue_frames=2)

    def consume() -> None:
        with FrameStream(probe_video(clip, settings), settings) as stream:
            raise KeyError(next(stream).index)

    with pytest.raises(KeyError):
        consume()


@needs_proc
@pytest.mark.usefixtures("nothing_left")
def test_closing_early_twice_or_never(clip: Path) -> None:
    settings = DecodeSettings(queue_frames=2)
    info = probe_video(clip, settings)
    stream = FrameStream(info, settings)
    next(stream)
    stream.close()
    stream.close()
    assert list(stream) == []
    FrameStream(info, settings).close()
    forgotten = FrameStream(info, settings)
    next(forgotten)
    del forgotten


@needs_proc
@pytest.mark.usefixtures("nothing_left")
def test_close_wakes_a_consumer_in_another_thread(tmp_path: Path) -> None:
    info = _hanging(tmp_path)
    stream = FrameStream(info, DecodeSettings())
    got: list[Frame] = []
    consumer = threading.Thread(target=lambda: got.extend(stream))
    consumer.start()
    wait_for(lambda: stream.child_pid is not None)
    stream.close()
    consumer.join(10)
    assert not consumer.is_alive()
    assert got == []


@needs_proc
@pytest.mark.usefixtures("nothing_left")
def test_a_hanging_decoder_is_ended(tmp_path: Path) -> None:
    settings = DecodeSettings(watchdog_seconds=0.5)
    start = time.monotonic()
    message = r"expected a frame of .*pipe.mp4 within 0.5 s, got none at all"
    with FrameStream(_hanging(tmp_path), settings) as stream, pytest.raises(VideoError, match=message):
        next(stream)
    assert time.monotonic() - start < 10


@pytest.mark.slow
def test_a_slow_consumer_is_no_hang(clip: Path) -> None:
    settings = DecodeSettings(watchdog_seconds=5.0, queue_frames=1)
    with FrameStream(probe_video(clip, settings), settings) as stream:
        next(stream)
        time.sleep(5.5)
        assert len(list(stream)) == 39


@pytest.mark.parametrize("decoder", ["decord", "pyav"])
@pytest.mark.parametrize("claimed", [39, 41])
def test_another_number_of_frames_than_probed_is_refused(clip: Path, decoder: str, claimed: int) -> None:
    settings = DecodeSettings(decoder=decoder)  # type: ignore[arg-type]
    info = dataclasses.replace(probe_video(clip, settings), num_frames=claimed)
    with (
        FrameStream(info, settings) as stream,
        pytest.raises(VideoError, match=f"expected {claimed} frames as the probe"),
    ):
        list(stream)


def test_damage_names_its_frame(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", 40, pix_fmt="yuv444p", options={"g": "1"})
    info = probe_video(path, DecodeSettings())
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 4000] = b"\xff" * 4000
    path.write_bytes(data)
    with FrameStream(info, DecodeSettings()) as stream, pytest.raises(VideoError, match=r"frame [12]\d"):
        list(stream)


def test_a_file_that_vanished_is_one_line(clip: Path, tmp_path: Path) -> None:
    for decoder in ("decord", "pyav"):
        settings = DecodeSettings(decoder=decoder)  # type: ignore[arg-type]
        info = dataclasses.replace(probe_video(clip, settings), path=tmp_path / "gone.mp4")
        with FrameStream(info, settings) as stream, pytest.raises(VideoError, match=r"gone\.mp4") as caught:
            list(stream)
        assert "\n" not in str(caught.value)


def test_another_size_than_probed_is_refused(clip: Path) -> None:
    info = dataclasses.replace(probe_video(clip, DecodeSettings()), width=32)
    with FrameStream(info, DecodeSettings()) as stream, pytest.raises(VideoError, match="frames of 32x48 throughout"):
        list(stream)


@needs_proc
def test_a_full_ring_stops_decoding(clip: Path) -> None:
    settings = DecodeSettings(queue_frames=3)
    with FrameStream(probe_video(clip, settings), settings) as stream:
        next(stream)
        wait_for(lambda: _state(stream.child_pid) == "T")  # stopped as a whole, decord's threads too
        assert len(list(stream)) == 39


@pytest.mark.slow
@needs_proc
def test_memory_of_the_child_stays_bounded_at_1080p(tmp_path: Path) -> None:
    path = write_video(tmp_path / "big.mp4", 80, width=1920, height=1080, noise=2, options={"preset": "ultrafast"})
    settings = DecodeSettings()
    info = probe_video(path, settings)
    assert info.decoder == "decord"
    peak_mb = 0.0
    with FrameStream(info, settings) as stream:
        for frame in stream:
            if frame.index < 60:
                time.sleep(0.03)
                peak_mb = max(peak_mb, _resident_peak_mb(stream.child_pid))
    assert 100 < peak_mb < 350


@pytest.mark.slow
@needs_proc
@pytest.mark.parametrize("decoder", ["decord", "pyav"])
def test_a_dead_parent_takes_the_child_along(clip: Path, decoder: str) -> None:
    code = textwrap.dedent(
        f"""
        import sys, time
        from pipeline.settings import DecodeSettings
        from pipeline.video.probe import probe_video
        from pipeline.video.stream import FrameStream
        settings = DecodeSettings(decoder={decoder!r}, queue_frames=2)
        stream = FrameStream(probe_video({str(clip)!r}, settings), settings)
        next(stream)
        print(stream.child_pid, flush=True)
        time.sleep(60)
        """
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment, text=True)
    assert parent.stdout is not None
    child_pid = int(parent.stdout.readline())
    assert Path(f"/proc/{child_pid}").exists()
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_for(lambda: _state(child_pid) in ("", "Z"))


def test_the_child_does_not_import_torch(clip: Path) -> None:
    code = "import sys, pipeline.video.child; sys.exit('torch' in sys.modules or 'pandas' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


def test_huge_frames_get_fewer_slots() -> None:
    assert ring_slots(8, 1080, 1920) == 8
    assert ring_slots(64, 4320, 7680) == 2
    assert ring_slots(1, 48, 64) == 2


@pytest.mark.slow
@pytest.mark.skipif(not CLIPS.is_dir(), reason="the real clips are not beside this checkout")
def test_a_real_clip_comes_out_whole() -> None:
    settings = DecodeSettings()
    path = CLIPS / "bedroom.mp4"
    with FrameStream(probe_video(path, settings), settings) as stream:
        same = [np.array_equal(a.rgb_hw3, b) for a, b in zip(stream, decode_directly(path), strict=True)]
    assert same == [True] * 200


def _hanging(tmp_path: Path) -> VideoInfo:
    """A file that blocks whoever opens it: a pipe that nobody writes to."""
    path = tmp_path / "pipe.mp4"
    os.mkfifo(path)
    return VideoInfo(path, 64, 48, 10, 25.0, 0.4, "h264", "mov", 0, "pyav", "test")


def _state(pid: int | None) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return ""


def _resident_peak_mb(pid: int | None) -> float:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return 0.0
    return float(status.partition("VmHWM:")[2].split()[0]) / 1e3 if "VmHWM" in status else 0.0


@pytest.mark.slow
def test_frames_that_nobody_wants_do_not_wake_the_watchdog(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The decoder says that it lives while it skips: twenty frames here take twice the watchdog's time."""
    slow = (
        "import sys, time; sys.path[:] = {path!r}; from {module} import main; from pipeline.video import child\n"
        "frames = child._frames\n"
        "def late(job):\n"
        "    for one in frames(job):\n"
        "        time.sleep(0.2)\n"
        "        yield one\n"
        "child._frames = late; main({arguments})"
    )
    info = probe_video(clip, DecodeSettings())
    monkeypatch.setattr("pipeline.video.process.CHILD_CODE", slow)
    with FrameStream(info, DecodeSettings(watchdog_seconds=2.0), indices=[0, 20]) as stream:
        assert [frame.index for frame in stream] == [0, 20]
