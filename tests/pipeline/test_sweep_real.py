"""A sweep of what `masksieve label` wrote: true masks are held against the facts, examples stand in their frames."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.demo import true_ious
from pipeline.policy import Policy
from pipeline.render.sweep_crops import GROUND, draw_crops
from pipeline.settings import DecodeSettings, StorageSettings
from pipeline.sweep import sweep
from pipeline.sweep_input import days_of, find_labels
from pipeline.sweep_truth import iou_of, load_truth


def test_masks_of_truth_give_the_risk_of_the_labels(night: Path) -> None:
    labels = find_labels(str(night / "out"), StorageSettings())
    truth = load_truth(night / "night", labels)
    policy = Policy(max_uncertainty=0.3, min_temporal_iou=None, max_area_change=None, across_cut="accept")
    found = sweep(labels, policy, truth=truth, bad_iou=0.8)
    accepted = []
    for file in (night / "out/labels").rglob("*.parquet"):
        rows = pq.read_table(file, partitioning=None)
        stem = Path(rows["video_uri"][0].as_py()).stem.replace("again", "occlusion")
        ious = true_ious(rows, np.load(night / f"night/{stem}.truth.npz")["ids_thw"])
        for row in rows.to_pylist():
            iou = ious.get((row["frame_index"], row["object_id"]))
            known = iou_of(truth, row["video_id"], row["frame_index"], row["object_id"])
            assert known == (None if iou is None else pytest.approx(iou))
            if row["visibility"] == "visible" and row["uncertainty"] <= 0.3 and iou is not None:
                accepted.append(iou)
    risk = found.overall.risk
    assert risk is not None
    assert found.overall_sums.truth is not None
    assert found.overall_sums.truth.videos == found.videos == 3
    assert risk.rows_k[found.now] == len(accepted) > 5
    assert risk.error_k[found.now] == pytest.approx(np.mean(np.array(accepted) < 0.8))
    assert risk.iou_k[found.now] == pytest.approx(np.mean(accepted))
    assert days_of(labels) in (None, 2)  # all on one day, or midnight came between


def test_examples_stand_in_their_frames_where_the_very_video_is_at_hand(night: Path, tmp_path: Path) -> None:
    labels = find_labels(str(night / "out"), StorageSettings())
    found = sweep(labels, Policy())
    crops = draw_crops(found.examples, found.told.tolist(), 250, DecodeSettings())
    assert len(crops) > 5
    assert [crop.compared for crop in crops] == sorted(crop.compared for crop in crops)
    assert all(crop.from_video for crop in crops)
    assert all(np.asarray(Image.open(io.BytesIO(crop.jpeg))).std() > 5 for crop in crops)
    alone = draw_crops(found.examples, found.told.tolist(), 250, DecodeSettings(), seconds=0)
    assert [crop.caption for crop in alone] == [crop.caption for crop in crops]
    assert not any(crop.from_video for crop in alone)
    corner = np.asarray(Image.open(io.BytesIO(alone[0].jpeg)))[0, 0]
    assert abs(int(corner.mean()) - GROUND) < 40
