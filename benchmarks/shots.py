"""How well scene cuts are found, and what that costs: joined clips, uncut clips made difficult, three strides.

`python benchmarks/shots.py [--real FOLDER] [--tune]` prints three tables. A cut counts as found on its frame only.
The seeds and the real clips of this exam were fixed before the detector was tuned; `--tune` takes those that it was
tuned on (its weights were fitted on further seeds). Each clip is made difficult by itself, then clips are joined.
"""

from __future__ import annotations

import argparse
import io
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table

from pipeline.nano.clips import render_clip
from pipeline.settings import DecodeSettings
from pipeline.shots import ShotDetector
from pipeline.video.probe import probe_video
from pipeline.video.stream import FrameStream

Frames = NDArray[np.uint8]
Difficulty = Callable[[Frames, np.random.Generator, int], Frames]

SHARED = Path(__file__).resolve().parents[2] / "shared/data/clips"
SIZE = 256
STRIDES = (1, 5, 15)
EXAM_SEEDS, TUNE_SEEDS = range(972_000_000, 972_000_012), range(2000, 2012)
EXAM_CLIPS, TUNE_CLIPS = ("coffee", "cups", "juggle"), ("bedroom", "blocks")
SYNTHETIC_FRAMES = 150
JOINED_VIDEOS, JOINED_PARTS = 6, 8


def _gain(frames: Frames, gain_n: NDArray[np.floating]) -> Frames:
    bright: Frames = (frames * np.asarray(gain_n, np.float32)[:, None, None, None]).clip(0, 255).astype(np.uint8)
    return bright


def _crop(frames: Frames, corner_n2: NDArray[np.floating], side: float) -> Frames:
    return np.stack(
        [
            np.asarray(
                Image.fromarray(frame).resize((SIZE, SIZE), Image.Resampling.BILINEAR, (x, y, x + side, y + side))
            )
            for frame, (x, y) in zip(frames, corner_n2.tolist(), strict=True)
        ]
    )


def plain(frames: Frames, rng: np.random.Generator, stride: int) -> Frames:
    """As it is."""
    return frames


def pan(frames: Frames, rng: np.random.Generator, stride: int) -> Frames:
    """A window of 55-75 % that moves by 0.2-1 % of the width a source frame and turns back at the border."""
    side = rng.uniform(0.55, 0.75) * SIZE
    angle, speed = rng.uniform(0, 2 * np.pi), rng.uniform(0.002, 0.01) * SIZE * stride
    line = rng.uniform(0, SIZE - side, 2) + speed * np.arange(len(frames))[:, None] * [np.cos(angle), np.sin(angle)]
    room = SIZE - side
    return _crop(frames, room - np.abs(line % (2 * room) - room), side)


def shake(frames: Frames, rng: np.random.Generator, stride: int) -> Frames:
    """A window that jumps by 2 % of the width between any two frames."""
    return _crop(frames, (16 + rng.normal(0, 5, (len(frames), 2))).clip(0, 32), SIZE - 32)


def exposure(frames: Frames, rng: np.random.Generator, stride: int) -> Frames:
    """Brightness that goes up and down by a factor of 1.8 each way within 50-120 source frames."""
    phase = 2 * np.pi * np.arange(len(frames)) * stride / rng.uniform(50, 120) + rng.uniform(0, 6)
    return _gain(frames, 1.8 ** np.sin(phase))


def flash(frames: Frames, rng: np.random.Generator, stride: int) -> Frames:
    """Flashes of one or two frames: more gain, more light, or a blend towards white."""
    out, at = frames.astype(np.float32), int(rng.integers(3, 8))
    while at < len(out) - 3:
        length, kind = int(rng.integers(1, 3)), int(rng.integers(3))
        for step, part in zip(range(at, at + length), (1.0, 0.7), strict=False):
            if kind == 0:
                out[step] *= 1 + part * rng.uniform(0.5, 2)
            elif kind == 1:
                out[step] += part * rng.uniform(60, 200)
            else:
                out[step] += (255 - out[step]) * part * rng.uniform(0.5, 1)
        at += length + int(rng.integers(4, 12))
    return out.clip(0, 255).astype(np.uint8)


def fade(frames: Frames, rng: np.random.Generator, stride: int) -> Frames:
    """The same scene faded to black and back."""
    gain, at = np.ones(len(frames)), 5
    while at < len(frames) - 16:
        length = int(rng.integers(3, 8))
        down = np.linspace(1, 0, length + 1)[1:]
        gain[at : at + 2 * length + 2] = np.concatenate([down, [0, 0], 1 - down])
        at += 2 * length + 12
    return _gain(frames, gain)


def noise(frames: Frames, rng: np.random.Generator, stride: int) -> Frames:
    """Sensor noise, sigma 8-25 grey levels."""
    sigma = rng.uniform(8, 25)
    return np.stack([(f + rng.normal(0, sigma, f.shape)).clip(0, 255).astype(np.uint8) for f in frames])


def compression(frames: Frames, rng: np.random.Generator, stride: int) -> Frames:
    """JPEG of quality 8, every twelfth frame 40: blocks, and a key frame now and then."""
    out = []
    for number, frame in enumerate(frames):
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, "JPEG", quality=40 if number % 12 == 0 else 8)
        out.append(np.asarray(Image.open(buffer)))
    return np.stack(out)


def dark(frames: Frames, rng: np.random.Generator, stride: int) -> Frames:
    """15-40 % of the light."""
    return _gain(frames, np.full(len(frames), rng.uniform(0.15, 0.4)))


def grey(frames: Frames, rng: np.random.Generator, stride: int) -> Frames:
    """Without colour."""
    luma = (frames @ np.array([0.299, 0.587, 0.114], np.float32)).astype(np.uint8)
    return np.repeat(luma[..., None], 3, -1)


DIFFICULTIES: tuple[Difficulty, ...] = (plain, pan, shake, exposure, flash, fade, noise, compression, dark, grey)


def cuts_of(frames: Frames) -> set[int]:
    """What the detector says with its default threshold."""
    detector = ShotDetector()
    return {index for index, frame in enumerate(frames) if detector.is_cut(frame)}


def joined(
    clips: list[Frames], difficulty: Difficulty, stride: int, rng: np.random.Generator
) -> Iterator[tuple[Frames, set[int]]]:
    """Videos of several parts, no two neighbours from one clip, and their true cuts."""
    for _ in range(JOINED_VIDEOS):
        parts: list[Frames] = []
        last = -1
        for _ in range(JOINED_PARTS):
            last = int(rng.choice([number for number in range(len(clips)) if number != last]))
            length = int(rng.integers(4, 20))
            start = int(rng.integers(0, max(1, len(clips[last]) - length * stride)))
            part = clips[last][start : start + length * stride : stride]
            parts.append(part if difficulty is fade else difficulty(part, rng, stride))
        yield np.concatenate(parts), set(np.cumsum([len(part) for part in parts])[:-1].tolist())


def examine(clips: list[Frames], stride: int, difficulty: Difficulty, rng: np.random.Generator) -> Counter[str]:
    """Counts over joined and uncut videos of one kind."""
    count: Counter[str] = Counter()
    for video, truth in joined(clips, difficulty, stride, rng):
        said = cuts_of(video)
        count.update(true=len(truth), found=len(truth & said), wrong=len(said - truth))
    for clip in clips:
        for start in range(0, stride, max(1, stride // 5)):
            video = difficulty(clip[start::stride][:100], rng, stride)
            count.update(frames=len(video), alarms=len(cuts_of(video)))
    return count


def angles(clips: list[Frames], rng: np.random.Generator) -> Counter[str]:
    """Cuts between two cameras on one scene: the left half, then the right half mirrored."""
    count: Counter[str] = Counter()
    half = SIZE // 2
    for clip in clips:
        middle = len(clip) // 2
        left = clip[:middle, half // 2 : half // 2 + half, :half]
        right = clip[middle:, half // 2 : half // 2 + half, : half - 1 : -1]
        said = cuts_of(np.concatenate([left, right]))
        count.update(true=1, found=middle in said, wrong=len(said - {middle}))
    return count


def costs(size: int, frames: Frames) -> tuple[float, float]:
    """Milliseconds per frame at one size: on a clip, and where every frame is a new scene.

    The median of the quickest of five looks at each frame, so that other work on the machine counts little.
    """
    scale = size // SIZE
    large = [np.repeat(np.repeat(frame, scale, 0), scale, 1) for frame in frames[:40]]
    mixed = [np.ascontiguousarray(np.roll(f, 97 * i, (0, 1))[:: (-1) ** i]) for i, f in enumerate(large)]
    found = []
    for video in (large, mixed):
        seconds = np.full((5, len(video)), np.inf)
        for look in seconds:
            detector = ShotDetector()
            for index, frame in enumerate(video):
                started = time.perf_counter()
                detector.is_cut(frame)
                look[index] = time.perf_counter() - started
        found.append(1e3 * float(np.median(seconds.min(0)[1:])))
    return found[0], found[1]


def real_clips(folder: Path, names: tuple[str, ...]) -> list[Frames]:
    """Clips of a folder at model size; none if it isn't there."""
    clips = []
    for name in names:
        if (path := folder / f"{name}.mp4").is_file():
            info = probe_video(path, DecodeSettings())
            with FrameStream(info, DecodeSettings(), resize=SIZE) as stream:
                clips.append(np.stack([frame.rgb_hw3 for frame in stream]))
    return clips


def _row(table: Table, name: list[str], count: Counter[str]) -> None:
    said = count["found"] + count["wrong"]
    precision = f"{count['found'] / said:.3f}" if said else "-"
    alarms = f"{1000 * count['alarms'] / count['frames']:.2f}" if count["frames"] else "-"
    recall = f"{count['found'] / count['true']:.3f}"
    table.add_row(*name, str(count["true"]), recall, precision, str(count["frames"] or "-"), alarms)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--real", type=Path, default=SHARED, help="folder of the real clips")
    parser.add_argument("--tune", action="store_true", help="the clips that the detector was tuned on")
    options = parser.parse_args()
    console = Console(width=110)
    seeds, names = (TUNE_SEEDS, TUNE_CLIPS) if options.tune else (EXAM_SEEDS, EXAM_CLIPS)
    sources = {"synthetic": [render_clip(seed, frames=SYNTHETIC_FRAMES, size=SIZE).frames_thw3 for seed in seeds]}
    if real := real_clips(options.real, names):
        sources["real"] = real
    heads = ("cuts", "recall", "precision", "uncut frames", "alarms per 1,000")
    by_stride = Table("source", "stride", *heads, title="plain clips, and all difficulties together")
    by_difficulty = Table("source", "difficulty", *heads, title="by difficulty, all strides")
    for source, clips in sources.items():
        rng = np.random.default_rng(0)
        counts = {(one, stride): examine(clips, stride, one, rng) for one in DIFFICULTIES for stride in STRIDES}
        for stride in STRIDES:
            _row(by_stride, [f"{source}, plain", str(stride)], counts[plain, stride])
        for stride in STRIDES:
            every = sum((counts[one, stride] for one in DIFFICULTIES), Counter())
            _row(by_stride, [f"{source}, all", str(stride)], every)
        for one in DIFFICULTIES:
            _row(by_difficulty, [source, one.__name__], sum((counts[one, stride] for stride in STRIDES), Counter()))
        _row(by_difficulty, [source, "same scene, other angle"], angles(clips, rng))
    console.print(by_stride)
    console.print(by_difficulty)
    cost = Table("size", "ms, a clip", "ms, every frame a new scene", title="cost per frame")
    for size in (256, 512, 1024):
        calm, worst = costs(size, sources[max(sources)][0])
        cost.add_row(str(size), f"{calm:.3f}", f"{worst:.3f}")
    console.print(cost)


if __name__ == "__main__":
    main()
