"""Prompts as read from a file reach the model: one click, a box with clicks, a mask."""

from __future__ import annotations

from typing import Any

import numpy as np
from pycocotools import mask as coco

from pipeline.prompts import parse_prompts
from pipeline.propagate import Session

from .conftest import HEIGHT, WIDTH, Clip


def test_a_prompts_file_is_propagated(model: Any, clip: Clip) -> None:
    given_hw = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    given_hw[20:50, 30:70] = 1
    counts = coco.encode(given_hw)["counts"].decode()
    data = {
        "version": 1,
        "objects": [
            {"object_id": 7, "prompts": [{"frame_index": 0, "points": [[50, 35, 1]]}]},
            {"object_id": 3, "prompts": [{"frame_index": 1, "box": [30, 20, 70, 50], "points": [[50, 35, 1]]}]},
            {"object_id": 5, "prompts": [{"frame_index": 0, "mask": {"size": [HEIGHT, WIDTH], "counts": counts}}]},
        ],
    }
    prompts = parse_prompts(data, source="test", base_dir=clip.folder)
    session = Session(model, prompts, clip.video_hw, clip.num_frames)
    session.prepare(clip.read)
    first, second, *_ = session.forward(clip.frames())
    assert {r.object_id: r.prompted for r in first} == {7: "click", 3: None, 5: "mask"}
    assert {r.object_id: r.prompted for r in second} == {7: None, 3: "box", 5: None}
    given = next(r for r in first if r.object_id == 5)
    assert given.logits_hw is not None
    assert bool((given.logits_hw[10:15, 8:13] > 0).all())
