"""What a click is worth and how long it takes: masks that tracking got wrong, mended by simulated clicks through the
editor of the review page, against the truth of synthetic clips.

    python -m benchmarks.review_edit                 # 60 clips, embedded model
    python -m benchmarks.review_edit --busy 2        # the same while two processes keep the cores busy

One click: the innermost pixel of the largest connected error. `bare` is the current mask as dense prompt and the click
alone, what `SAM2ImagePredictor` would be asked; `editor` is what the page gets.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch.nn import functional

from pipeline.models import load_model
from pipeline.nano.clips import render_clip
from pipeline.nano.follow import first_frame_prompts, follow, innermost_pixel
from pipeline.review.editor import Editor
from usam.image import EncodedImage

SIZE_PX, FRAMES, EVERY, CLICKS = 192, 24, 6, 4
BoolArray = NDArray[np.bool_]
Fix = Callable[[EncodedImage, NDArray[np.float32], NDArray[np.int32], BoolArray], BoolArray]


class Case(NamedTuple):
    """A tracked mask that is wrong, IoU under 0.8."""

    rgb_hw3: NDArray[np.uint8]
    truth_hw: BoolArray
    mask_hw: BoolArray


def cases(model: object, first_seed: int, clips: int) -> Iterator[Case]:
    for seed in range(first_seed, first_seed + clips):
        clip = render_clip(seed, frames=FRAMES, size=SIZE_PX)
        prompts = first_frame_prompts(clip, "click", 100)
        for row in follow(model, clip, prompts) if prompts else ():
            if row.frame_index % EVERY != EVERY - 1 or row.truth_px < 60 or row.iou >= 0.8:
                continue
            assert row.result.logits_hw is not None
            low = row.result.logits_hw[None, None].float()
            mask_hw = functional.interpolate(low, size=(SIZE_PX, SIZE_PX), mode="bilinear", align_corners=False) > 0
            truth_hw = clip.ids_thw[row.frame_index] == row.object_id
            yield Case(clip.frames_thw3[row.frame_index], truth_hw, mask_hw[0, 0].numpy())


def iou(a_hw: BoolArray, b_hw: BoolArray) -> float:
    union = (a_hw | b_hw).sum()
    return float((a_hw & b_hw).sum() / union) if union else 1.0


def largest_error(truth_hw: BoolArray, mask_hw: BoolArray) -> tuple[float, float, int] | None:
    """(x, y, 1 to add or 0 to take away) of the click that a person would make first; None for the right mask."""
    found = []
    for wrong_hw, label in ((truth_hw & ~mask_hw, 1), (mask_hw & ~truth_hw, 0)):
        parts_hw, count = ndimage.label(wrong_hw)
        if count:
            sizes = np.bincount(parts_hw.ravel())[1:]
            found.append((int(sizes.max()), label, parts_hw == 1 + int(sizes.argmax())))
    if not found:
        return None
    _, label, part_hw = max(found, key=lambda one: one[0])
    x, y = innermost_pixel(part_hw)
    return x + 0.5, y + 0.5, label


def clicked(case: Case, features: EncodedImage, fix: Fix, seconds: list[float], obeyed: list[bool]) -> list[float]:
    """IoU after each of `CLICKS` clicks."""
    mask_hw, points, labels, out = case.mask_hw, [], [], []
    for _ in range(CLICKS):
        if (click := largest_error(case.truth_hw, mask_hw)) is not None:
            points.append(click[:2])
            labels.append(click[2])
            begun = time.perf_counter()
            mask_hw = fix(features, np.array(points, np.float32), np.array(labels, np.int32), mask_hw)
            seconds.append(time.perf_counter() - begun)
            obeyed.append(bool(mask_hw[int(click[1]), int(click[0])]) == bool(click[2]))
        out.append(iou(case.truth_hw, mask_hw))
    return out


def _spin() -> None:
    while True:
        np.linalg.svd(np.random.rand(200, 200))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="sam2_nano")
    parser.add_argument("--first-seed", type=int, default=920_000_000)
    parser.add_argument("--clips", type=int, default=60)
    parser.add_argument("--busy", type=int, default=0, help="processes that keep cores busy meanwhile")
    options = parser.parse_args()
    torch.set_num_threads(1)
    loaded = load_model(options.model)
    editor, size = Editor(loaded), (SIZE_PX, SIZE_PX)
    found = list(cases(loaded.model, options.first_seed, options.clips))
    before = np.array([iou(case.truth_hw, case.mask_hw) for case in found])
    busy = [multiprocessing.Process(target=_spin, daemon=True) for _ in range(options.busy)]
    for process in busy:
        process.start()
    begun, features = [], []
    for case in found:
        at = time.perf_counter()
        features.append(editor.features(case.rgb_hw3))
        begun.append(time.perf_counter() - at)
    fixes: dict[str, Fix] = {
        "bare": lambda f, p, n, m: editor._decode(f, p, n, None, m, size, multimask=False)[0].mask_hw,
        "editor": lambda f, p, n, m: editor.mask(f, p, n, None, m, size).mask_hw,
    }
    print(f"{len(found)} wrong masks of {options.clips} clips, mean IoU {before.mean():.3f}; {options.model}")
    for name, fix in fixes.items():
        seconds: list[float] = []
        obeyed: list[bool] = []
        after = np.array([clicked(c, f, fix, seconds, obeyed) for c, f in zip(found, features, strict=True)])
        ms = 1000 * np.quantile(seconds, (0.5, 0.95))
        print(
            f"{name:8s} IoU after 1..{CLICKS} clicks {np.round(after.mean(0), 3)}, worse after one "
            f"{np.mean(after[:, 0] < before - 0.01):.0%}, clicks obeyed {np.mean(obeyed):.0%}, "
            f"p50 {ms[0]:.1f} ms, p95 {ms[1]:.1f} ms"
        )
    ms = 1000 * np.quantile(begun, (0.5, 0.95))
    print(f"features, once a frame: p50 {ms[0]:.1f} ms, p95 {ms[1]:.1f} ms")
    for process in busy:
        process.terminate()


if __name__ == "__main__":
    main()
