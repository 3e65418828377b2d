"""How far a run that goes on from stored masks is from one that was never interrupted, and what a correction gives.

`python benchmarks/resume.py [--clips 6] [--real FOLDER] [--model sam2_nano]` prints two tables. The first: each video
is propagated once; then, at an early, a middle and a late frame, a new session is built from the prompts and the stored
masks (binary, at the video's size, as the facts hold them) and goes on; beside it one that has the prompts alone. The
second, on drawn clips: where an object was lost, its true box is given as a correction; both ways of re-propagating are
compared with the truth.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from pipeline import rle
from pipeline.models import load_model
from pipeline.nano.clips import Clip, render_clip
from pipeline.nano.follow import first_frame_prompts, tight_box
from pipeline.prompts import FramePrompt, ObjectPrompts, PromptSet, load_prompts, prompt_set
from pipeline.propagate import FrameResult, Session
from pipeline.resume import corrected, resume_session
from pipeline.settings import load_settings
from pipeline.stored_masks import StoredMask, StoredMasks
from pipeline.video.probe import probe_video
from pipeline.video.stream import Frame, FrameStream

SHARED = Path(__file__).resolve().parents[2] / "shared/data/clips"
FIRST_SEED = 700_100_001  # apart from the exam's and the training's clips
HORIZONS = (1, 10, 50)
LOST_IOU, MIN_AREA_PX = 0.5, 60


@dataclass(frozen=True)
class Case:
    """A video in memory at model size, with its truth if it was drawn."""

    name: str
    prompts: PromptSet
    video_hw: tuple[int, int]
    frames: list[Frame]
    clip: Clip | None

    def read(self, index: int) -> NDArray[np.uint8]:
        """A frame's pixels."""
        return self.frames[index].rgb_hw3

    def stored(self, result: FrameResult) -> StoredMask:
        """A result as the facts hold it."""
        assert result.logits_hw is not None
        encoded = rle.encode_logits(result.logits_hw.float().cpu().numpy(), *self.video_hw)
        return StoredMask(encoded.counts, result.object_score, *self.video_hw)

    def iou(self, one: StoredMask, other: StoredMask) -> float:
        """Of two masks; 1 for two empty ones."""
        return rle.iou(one.counts, other.counts, *self.video_hw)

    def flips(self, one: StoredMask, other: StoredMask) -> float:
        """Share of pixels that differ."""
        return float((one.mask_hw() != other.mask_hw()).mean())

    def truth(self, object_id: int, index: int) -> StoredMask:
        """The true mask of a drawn object."""
        assert self.clip is not None
        return StoredMask(rle.encode_mask(self.clip.ids_thw[index] == object_id).counts, None, *self.video_hw)


def drawn(count: int, size: int) -> Iterator[Case]:
    """Drawn clips with a click on every object's first frame."""
    for seed in range(FIRST_SEED, FIRST_SEED + count):
        clip = render_clip(seed, frames=130, size=size)
        prompts = first_frame_prompts(clip, "click", MIN_AREA_PX)
        if prompts is not None:
            frames = [Frame(i, i / 25, rgb_hw3) for i, rgb_hw3 in enumerate(clip.frames_thw3)]
            yield Case(f"drawn {seed}", prompts, (size, size), frames, clip)


def real(folder: Path, size: int) -> Iterator[Case]:
    """Every clip of a folder that has prompts beside it."""
    settings = load_settings().decode
    for path in sorted(folder.glob("*.mp4")):
        info = probe_video(path, settings)
        with FrameStream(info, settings, resize=size) as stream:
            frames = list(stream)
        yield Case(path.stem, load_prompts(path.with_suffix(".prompts.json")), (info.height, info.width), frames, None)


def run(model: Any, case: Case) -> dict[tuple[int, int], FrameResult]:
    """The uninterrupted run."""
    session = Session(model, case.prompts, case.video_hw, len(case.frames), reverse=False, keep_tokens=False)
    session.prepare(case.read)
    return _by_key(session.forward(case.frames))


def _by_key(passes: Iterable[list[FrameResult]]) -> dict[tuple[int, int], FrameResult]:
    return {(r.object_id, r.frame_index): r for results in passes for r in results if r.logits_hw is not None}


def resumed(model: Any, cases: Iterable[Case]) -> Table:
    """Go on from three frames of every case."""
    rows: dict[tuple[str, str, int], list[tuple[float, float, float | None, float | None]]] = defaultdict(list)
    videos: dict[str, set[str]] = defaultdict(set)
    for case in cases:
        kind, count = "real" if case.clip is None else "drawn", len(case.frames)
        videos[kind].add(case.name)
        whole = {key: case.stored(result) for key, result in run(model, case).items()}
        for t in (20, (count - HORIZONS[-1]) // 2, count - HORIZONS[-1] - 1):
            for memory in ("rebuilt", "prompts only"):
                masks = StoredMasks(whole)
                session = resume_session(
                    model, case.prompts, masks, t, case.read, case.video_hw, count, keep_tokens=False
                )
                if memory != "rebuilt":
                    for track in session.tracks:
                        track.propagated.clear()
                for results in session.forward(case.frames[t : t + HORIZONS[-1]]):
                    for result in results:
                        key, ahead = (result.object_id, result.frame_index), result.frame_index - t + 1
                        if ahead not in HORIZONS or key not in whole or result.logits_hw is None:
                            continue
                        mask, other = case.stored(result), whole[key]
                        true = None if case.clip is None else case.truth(*key)
                        rows[kind, memory, ahead].append(
                            (
                                case.iou(mask, other),
                                case.flips(mask, other),
                                None if true is None else case.iou(mask, true),
                                None if true is None else case.iou(other, true),
                            )
                        )
    table = Table(title="Going on from stored masks: distance from the uninterrupted run")
    for column in (
        "videos", "memory", "frames ahead", "masks", "mean IoU", "lowest IoU", "IoU < 0.9", "pixels flipped",
        "IoU with truth", "uninterrupted",
    ):  # fmt: skip
        table.add_column(column, justify="left" if column in ("videos", "memory") else "right")
    for (kind, memory, ahead), found in sorted(rows.items(), key=lambda row: (row[0][0], row[0][1] != "rebuilt")):
        ious, flips, truths, others = zip(*found, strict=True)
        table.add_row(
            f"{len(videos[kind])} {kind}", memory, str(ahead), str(len(found)), f"{statistics.mean(ious):.4f}",
            f"{min(ious):.3f}", f"{sum(iou < 0.9 for iou in ious) / len(ious):.1%}", f"{statistics.mean(flips):.1e}",
            *("" if column[0] is None else f"{statistics.mean(column):.4f}" for column in (truths, others)),
        )  # fmt: skip
    return table


def corrections(model: Any, cases: Iterable[Case]) -> Table:
    """Correct every object of a drawn clip that was lost, in the middle of the frames on which it was."""
    found: dict[str, list[tuple[float, float, int]]] = defaultdict(list)
    for case in cases:
        assert case.clip is not None
        count = len(case.frames)
        whole = {key: case.stored(result) for key, result in run(model, case).items()}
        for object_id in sorted({key[0] for key in whole}):
            true = [case.truth(object_id, index) for index in range(count)]
            before = [case.iou(whole[object_id, index], true[index]) for index in range(count)]
            area = (case.clip.ids_thw == object_id).sum((1, 2))
            lost = [i for i in range(15, count - 15) if area[i] >= MIN_AREA_PX and before[i] < LOST_IOU]
            if not lost:
                continue
            at = lost[len(lost) // 2]
            box_xyxy = np.array(tight_box(case.clip.ids_thw[at] == object_id), np.float32)
            new = prompt_set([ObjectPrompts(object_id, None, (FramePrompt(at, box_xyxy=box_xyxy),))], "truth")
            found["not corrected"].append((statistics.mean(before[1:at]), statistics.mean(before[at:]), 0))
            for name, fast in (("whole object", False), ("fast", True)):
                again = corrected(
                    model, case.prompts, new, case.read, case.video_hw, count,
                    fast=fast, reverse=False, keep_tokens=False,
                )  # fmt: skip
                after, frames = list(before), 0
                for (_, index), result in _by_key(again).items():
                    after[index], frames = case.iou(case.stored(result), true[index]), frames + 1
                found[name].append((statistics.mean(after[1:at]), statistics.mean(after[at:]), frames))
    table = Table(title="One correction of a lost object: mean IoU with the truth")
    for column in ("way", "objects", "frames before it", "from it on", "frames propagated"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for name, rows in found.items():
        before_it, from_it, frames_done = (statistics.mean(column) for column in zip(*rows, strict=True))
        table.add_row(name, str(len(rows)), f"{before_it:.4f}", f"{from_it:.4f}", f"{frames_done:.0f}")
    return table


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=6, help="drawn clips (130 frames each)")
    parser.add_argument("--real", type=Path, default=SHARED, help="folder of clips with prompts beside them")
    parser.add_argument("--model", default="sam2_nano")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model(options.model, device="auto").model
    cases = list(drawn(options.clips, model.image_size))
    console = Console()
    console.print(resumed(model, [*cases, *real(options.real, model.image_size)]))
    console.print(corrections(model, cases))


if __name__ == "__main__":
    main()
