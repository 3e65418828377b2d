"""Polishing: the predictor learns what its candidates are worth, and the single mask's score stays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sam2.modeling.sam2_utils import MLP

from pipeline.nano.polish import polish
from usam.errors import HeadError
from usam.shard import Plan, Shard, ShardWriter

WIDTH = 16


def shard(path: Path, videos: int = 20, rows: int = 30) -> Shard:
    """Tokens whose first three numbers say how good the candidates are."""
    rng = np.random.default_rng(0)
    writer = ShardWriter(path, Plan("tracked", {"tiny": {"name": "m", "sha256": "a"}}, "tiny", "d", "s", {}))
    for video in range(videos):
        tokens = rng.normal(0, 1, (rows, 5, WIDTH))
        ious = 1 / (1 + np.exp(-tokens[:, 0, :3]))
        columns = {
            "frame_index": list(range(rows)), "object_id": [1] * rows, "size": ["tiny"] * rows,
            "prompted": [False] * rows, "visible": [True] * rows, "predicted": [True] * rows,
            "chosen": [1] * rows, "best": [1] * rows, "sam_score": [0.5] * rows, "iou_chosen": list(ious[:, 0]),
            **{f"candidate_iou_{j}": list(ious[:, j]) for j in range(3)},
        }  # fmt: skip
        writer.add(f"v{video:02d}", columns, tokens)
    return writer.finish([f"v{video:02d}" for video in range(videos)])


def predictor() -> MLP:
    torch.manual_seed(1)
    return MLP(WIDTH, 32, 4, 3, sigmoid_output=True).eval().requires_grad_(False)


def test_the_score_follows_true_iou_afterwards_and_the_single_mask_keeps_its_own(tmp_path: Path) -> None:
    head, rows = predictor(), shard(tmp_path / "s")
    tokens = torch.from_numpy(np.array(rows.tokens_n5d[:, 0]))
    before, weights = head(tokens), [p.clone() for p in head.parameters()]
    polished, figures = polish(head, rows, lr=3e-3)
    assert figures["after"]["pearson"] > 0.8 > figures["before"]["pearson"]
    assert figures["after"]["mean_iou"] > figures["before"]["mean_iou"]
    assert float((polished(tokens)[:, 0] - before[:, 0]).abs().mean()) < 0.05
    assert all(torch.equal(a, b) for a, b in zip(head.parameters(), weights, strict=True))


def test_the_same_seed_polishes_alike(tmp_path: Path) -> None:
    rows = shard(tmp_path / "s")
    first, second = (polish(predictor(), rows, lr=1e-3, patience=2)[0] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_one_video_is_too_few(tmp_path: Path) -> None:
    with pytest.raises(HeadError, match="at least 2 videos"):
        polish(predictor(), shard(tmp_path / "s", videos=1))
