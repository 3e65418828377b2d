"""Review lists and answers made by hand: no video, no model, any number of items."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from benchmarks.review_queue import Flagged, write_list
from pipeline import rle
from pipeline.review.answers import Answer, GivenMask
from pipeline.review.items import Item, about
from pipeline.storage.objects import ObjectStore

HEIGHT, WIDTH = 8, 12


def video(number: int) -> str:
    """The id of a video."""
    return hashlib.sha256(str(number).encode()).hexdigest()


def fill(
    store: ObjectStore, videos: int = 1, stretches: int = 4, audits: int = 0, rle: bytes = b"1", **more: Any
) -> None:
    """Review lists of some videos: stretches of 4 rows, the first the most uncertain, each of an object of its own."""
    flagged = [Flagged(one, 0, 4, 0.9 - 0.5 * one / stretches, rle=rle) for one in range(stretches)]
    flagged += [Flagged(100 + one, 5, 1, 0.1, audit=True, rle=rle) for one in range(audits)]
    for number in range(videos):
        write_list(store, video(number), flagged, **{"height": HEIGHT, "width": WIDTH, **more})


def answer_to(item: Item, answer_id: str, who: str, **changes: Any) -> Answer:
    """An answer that is right about what was shown."""
    fields: dict[str, Any] = {
        **about(item), "answer_id": answer_id, "reviewer": who, "frame_index": item.frame_index,
        "verdict": "accept", "answered_at": datetime.now(UTC), "seconds": 1.5,
    }  # fmt: skip
    return Answer(**{**fields, **changes})


def given(height: int = HEIGHT, width: int = WIDTH) -> GivenMask:
    """A mask of a few pixels."""
    mask_hw = np.zeros((height, width), bool)
    mask_hw[1:3, 2:5] = True
    return GivenMask(height=height, width=width, counts=rle.encode_mask(mask_hw).counts.decode())


@dataclass
class Clock:
    """A clock that only moves when it is told to."""

    now: float = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now
