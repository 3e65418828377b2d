"""A harvest has one row per scored mask with truth, with the IoU of the mask that the pipeline would write."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from usam.errors import HeadError
from usam.harvest import Rows, TruthClip, harvest


def mask(frame: int, left: bool = True, **changes: Any) -> Any:
    logits = torch.full((4, 4), -5.0)
    logits[:, : 2 if left else 4] = 5.0
    fields = {
        "frame_index": frame,
        "object_id": 1,
        "visibility": "visible",
        "prompted": None,
        "logits_hw": logits,
        "object_score": 3.0,
        "sam_score": 0.8,
        "tokens_2d": torch.full((6,), float(frame)),
    }
    return SimpleNamespace(**{**fields, **changes})


def left_half(frame: int, object_id: int) -> np.ndarray | None:
    truth = np.zeros((8, 8), bool)
    if frame != 3:
        truth[:, :4] = True
    return None if frame == 4 else truth


def test_rows_carry_truth_and_visibility() -> None:
    masks = [
        [mask(0, prompted="click"), mask(0, object_id=2, sam_score=None, tokens_2d=None, prompted="mask")],
        [mask(1, left=False)],
        [mask(2, visibility="absent", logits_hw=torch.full((4, 4), -1024.0))],
        [mask(3)],
        [mask(4)],
    ]
    rows = harvest([TruthClip("a", masks, left_half)])
    assert rows.frame_index_n.tolist() == [0, 1, 2, 3]
    assert rows.iou_n.tolist() == pytest.approx([1.0, 0.5, 0.0, 0.0])
    assert rows.predicted_n.tolist() == [True, True, False, True]
    assert rows.visible_n.tolist() == [True, True, True, False]
    assert rows.prompted_n.tolist() == [True, False, False, False]
    assert rows.tokens_n2d[:, 0].tolist() == [0, 1, 2, 3]


def test_harvests_survive_the_disk_and_join(tmp_path: Path) -> None:
    rows = harvest([TruthClip("a", [[mask(0)]], left_half), TruthClip("b", [[mask(1)]], left_half)])
    rows.save(tmp_path / "rows.npz")
    both = Rows.concat([Rows.load(tmp_path / "rows.npz"), rows])
    assert both.video_id_n.tolist() == ["a", "b", "a", "b"]
    assert [p.name for p in tmp_path.iterdir()] == ["rows.npz"]


def test_nothing_to_harvest_is_refused() -> None:
    with pytest.raises(HeadError, match="truth's frames"):
        harvest([TruthClip("a", [[mask(4)]], left_half)])
