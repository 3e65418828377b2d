"""The demo's truth: prompts that lie on their objects, and IoU that counts absent rows as the records say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.demo import DEMO_CLIPS, agreement, make_drop, prompts_from_truth, true_ious
from pipeline.prompts import load_prompts
from pipeline.rle import empty_mask, encode_mask
from pipeline.settings import DecodeSettings
from pipeline.video.probe import probe_video


@pytest.mark.parametrize("kind", ["click", "box"])
def test_prompts_name_the_largest_objects(kind: str) -> None:
    ids = np.zeros((50, 50), np.uint8)
    for object_id, side in ((1, 3), (2, 12), (3, 8), (4, 10)):
        ids[12 * (object_id - 1) : 12 * (object_id - 1) + side, :side] = object_id
    objects = prompts_from_truth(ids, kind)["objects"]
    assert [one["object_id"] for one in objects] == [2, 3, 4]
    prompt = objects[0]["prompts"][0]
    assert prompt.get("box", [0, 12, 12, 24]) == [0, 12, 12, 24]
    if kind == "click":
        x, y, label = prompt["points"][0]
        assert (ids[y, x], label) == (2, 1)


def test_absent_rows_count_one_when_right_and_nought_when_wrong() -> None:
    truth = np.zeros((4, 20, 20), np.uint8)
    truth[:2, :10] = 1
    whole, none = encode_mask(truth[0] == 1).counts, empty_mask(20, 20).counts
    given = [(whole, "visible"), (none, "absent"), (none, "absent"), (None, "untracked")]
    rows = pa.Table.from_pylist(
        [
            {
                "frame_index": i, "object_id": 1, "height": 20, "width": 20, "rle": rle, "visibility": seen,
                "decision": "review" if i == 1 else "accept",
            }
            for i, (rle, seen) in enumerate(given)
        ]
    )  # fmt: skip
    ious = true_ious(rows, truth)
    assert ious == {(0, 1): 1.0, (1, 1): 0.0, (2, 1): 1.0}
    assert agreement(rows, ious, ["review"]) == ([0.0], [True])
    assert agreement(rows, ious, ["accept"]) == ([1.0, 1.0], [False, True])


def test_the_drop_holds_an_occlusion_a_lookalike_and_an_exit() -> None:
    assert [clip.hard for clip in DEMO_CLIPS] == [("occluder",), ("twin",), ("exit",)]
    assert all(200_000_000 < clip.seed < 900_000_000 for clip in DEMO_CLIPS)


def test_a_drop_can_be_labelled(tmp_path: Path) -> None:
    (clip,) = make_drop(tmp_path / "drop", DEMO_CLIPS[:1], num_frames=3)
    info = probe_video(clip.video, DecodeSettings())
    assert (info.num_frames, info.height) == (3, clip.ids_thw.shape[1])
    prompts = load_prompts(clip.prompts)
    prompts.validate(info)
    assert len(prompts.objects) == len(json.loads(clip.prompts.read_text())["objects"])
    assert np.array_equal(np.load(tmp_path / "drop" / "occlusion.truth.npz")["ids_thw"], clip.ids_thw)
