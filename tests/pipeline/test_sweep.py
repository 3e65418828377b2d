"""A sweep says of each threshold what deciding all rows by it would say, and of risk what videos with truth say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pipeline import sweep_input
from pipeline.judged import TruthError
from pipeline.policy import GroupThreshold, Policy
from pipeline.route import decide
from pipeline.settings import StorageSettings
from pipeline.sweep import Sweep, sweep
from pipeline.sweep_curve import risk
from pipeline.sweep_input import SweepError, find_labels, policy_of
from pipeline.sweep_reader import Group
from pipeline.sweep_sums import Cell, Moments
from pipeline.sweep_truth import TrueRows, load_truth, row_key

from .sweeping import FRAMES, facts, video_id, write_labels, write_truth

POLICIES = {
    "default": Policy(),
    "holds": Policy(hold_above_uncertainty=0.4, labels={"car": "hold"}, max_area_share=0.09, min_object_score=-1),
    "absent accepted": Policy(
        absent="accept", across_cut="accept", max_model_gap=0.0, min_object_score=0.0, min_temporal_iou=None
    ),
    "absent accepted or never": Policy(absent="accept", groups=(GroupThreshold(label="cup", max_uncertainty=None),)),
    "absent scored": Policy(absent="score", min_area_px=60, auto_margin=0.3),
    "groups": Policy(
        groups=(
            GroupThreshold(label="cup", max_uncertainty=0.1),
            GroupThreshold(source="day", model="sam2_nano", max_uncertainty=None),
        )
    ),
}


def swept(place: Path | str, policy: Policy = POLICIES["default"], **options: object) -> Sweep:
    return sweep(find_labels(str(place), StorageSettings()), policy, **options)  # type: ignore[arg-type]


def decided(tables: list[tuple[pa.Table, str]], policy: Policy) -> tuple[int, int, int]:
    """Predictions that are accepted, rows for review, and stretches of them, by walking over the rows."""
    accepted = review = stretches = 0
    for table, drop in tables:
        made = decide(table.combine_chunks().to_batches()[0], policy, source=drop, model="sam2_nano")
        running: dict[int, bool] = {}
        for row, decision in zip(table.to_pylist(), made.column("decision").to_pylist(), strict=True):
            given = row["prompted"] == "mask" and row["visibility"] != "untracked"
            accepted += decision == "accept" and not given
            review += decision == "review"
            stretches += decision == "review" and not running.get(row["object_id"], False)
            running[row["object_id"]] = decision == "review"
    return accepted, review, stretches


@pytest.mark.parametrize("name", POLICIES)
def test_every_threshold_says_what_deciding_by_it_would(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = POLICIES[name]
    monkeypatch.setattr(sweep_input, "BATCH_ROWS", 7)  # stretches run on from one batch to the next
    tables = [(facts(number), "day" if number % 2 else "night") for number in range(4)]
    for table, drop in tables:
        write_labels(tmp_path, table, drop)
    found = swept(tmp_path, policy)
    for k in (0, 20, 55, 100, 250, 300, 401, 700, len(found.thresholds_k) - 2):
        at = policy.model_copy(update={"max_uncertainty": float(found.thresholds_k[k]), "groups": ()})
        counts = [int(one[k]) for one in (found.overall.accepted_k, found.overall.flagged_k, found.overall.stretches_k)]
        assert tuple(counts) == decided(tables, at), found.thresholds_k[k]
    assert 0 < found.overall.accepted_k[20] < found.overall.accepted_k[700] < found.overall.predicted
    now = [int(one[-1]) for one in (found.overall.accepted_k, found.overall.flagged_k, found.overall.stretches_k)]
    assert tuple(now) == decided(tables, policy)
    assert found.frames == 4 * FRAMES
    for group, curve in found.groups.items():
        rows = [
            (table.filter(pc.equal(table["label"].fill_null(""), group.label or "")), drop)
            for table, drop in tables
            if drop == group.source
        ]
        rows = [(table, drop) for table, drop in rows if table.num_rows]
        assert (int(curve.accepted_k[-1]), int(curve.flagged_k[-1])) == decided(rows, policy)[:2], group


def test_a_file_of_several_videos_is_the_same_as_a_file_for_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep_input, "BATCH_ROWS", 7)
    tables = [facts(number) for number in range(3)]
    files = [write_labels(tmp_path / "out", table) for table in tables]
    loose = tmp_path / "loose" / "drop=day"
    loose.mkdir(parents=True)
    whole = pa.concat_tables([pq.read_table(file, partitioning=None) for file in files]).drop_columns("video_uri")
    pq.write_table(whole.slice(0, 180), loose / "a.parquet", row_group_size=50)  # each with a dictionary of its own
    pq.write_table(whole.slice(180), loose / "b.parquet")
    write_truth(tmp_path / "truth.parquet", tables)
    results = []
    for place in (tmp_path / "out", tmp_path / "loose"):
        labels = find_labels(str(place), StorageSettings())
        results.append(sweep(labels, Policy(), truth=load_truth(tmp_path / "truth.parquet", labels)))
    one, other = results
    assert one.videos == other.videos == 3
    assert one.frames == other.frames == 3 * FRAMES
    assert one.overall.accepted_k.tolist() == other.overall.accepted_k.tolist()
    assert one.overall.stretches_k.tolist() == other.overall.stretches_k.tolist()
    assert one.overall.risk is not None
    assert other.overall.risk is not None
    for name in ("error_k", "error_high_k", "iou_k", "iou_low_k", "videos_k"):
        np.testing.assert_allclose(getattr(one.overall.risk, name), getattr(other.overall.risk, name))


def test_risk_is_that_of_the_accepted_rows_with_truth(tmp_path: Path) -> None:
    tables = [facts(number) for number in range(5)]
    for table in tables:
        write_labels(tmp_path / "out", table)
    ious = write_truth(tmp_path / "truth.parquet", tables)
    labels = find_labels(str(tmp_path / "out"), StorageSettings())
    found = sweep(labels, Policy(), truth=load_truth(tmp_path / "truth.parquet", labels), bad_iou=0.7)
    by_video: dict[str, list[float]] = {}
    for table in tables:
        made = decide(table.combine_chunks().to_batches()[0], Policy(), source="day", model="sam2_nano")
        for row, decision in zip(table.to_pylist(), made.column("decision").to_pylist(), strict=True):
            iou = ious.get((row["video_id"], row["frame_index"], row["object_id"]))
            if decision == "accept" and row["prompted"] != "mask" and iou is not None:
                by_video.setdefault(row["video_id"], []).append(iou)
    every = np.concatenate([*by_video.values()])
    r = found.overall.risk
    assert r is not None
    for k in (found.now, -1):
        assert (r.rows_k[k], r.videos_k[k]) == (len(every), 5)
        assert r.error_k[k] == pytest.approx((every < 0.7).mean())
        assert r.iou_k[k] == pytest.approx(every.mean())
        residual = [sum(one) - every.mean() * len(one) for one in by_video.values()]
        spread = 2.776445 * np.sqrt(sum(x * x for x in residual) * 5 / 4) / len(every)  # Student's t of 4
        assert r.iou_high_k[k] - r.iou_k[k] == pytest.approx(spread, rel=1e-5)
        assert r.error_low_k[k] < r.error_k[k] < r.error_high_k[k]


def test_a_row_counts_as_many_as_it_stands_for(tmp_path: Path) -> None:
    write_labels(tmp_path, facts(0, label="cup"))
    table = facts(0)
    key_n = row_key(table["frame_index"].to_numpy(), table["object_id"].to_numpy())
    iou_n, weight_n = np.tile([0.2, 0.9], len(key_n) // 2), np.tile([1.0, 9.0], len(key_n) // 2)
    found = swept(tmp_path, truth={video_id(0): TrueRows(key_n, iou_n, weight_n)})
    alike = swept(tmp_path, truth={video_id(0): TrueRows(key_n, iou_n, np.full(len(key_n), 5.0))})
    assert found.overall.risk is not None
    assert alike.overall.risk is not None
    bad, rows = round(alike.overall.risk.error_k[-1] * alike.overall.risk.rows_k[-1]), alike.overall.risk.rows_k[-1]
    assert 0 < bad < rows
    assert found.overall.risk.error_k[-1] == pytest.approx(bad / (bad + 9 * (rows - bad)))
    assert found.overall.risk.rows_k[-1] == rows


def test_intervals_hold_as_often_as_they_say_though_rows_of_a_video_are_alike() -> None:
    rng, hits, naive = np.random.default_rng(0), 0, 0
    for _ in range(300):
        moments = Moments(2)
        rates = rng.beta(0.8, 7.2, 60)  # 10% on the average, videos differ
        for rate in rates:
            rows = rng.integers(20, 60)
            cell, bad = Cell(1), rng.binomial(rows, rate)
            cell.bins_cb[:, 0] = cell.now_c[:] = rows, rows, bad, rows - bad
            moments.add_video(cell)
        found = risk(moments, 0.95)
        hits += found.error_low_k[0] <= 0.1 <= found.error_high_k[0]
        spread = 1.96 * np.sqrt(0.09 / found.rows_k[0])
        naive += abs(found.error_k[0] - 0.1) <= spread
    assert hits / 300 > 0.91
    assert naive / 300 < 0.7  # rows as independent ones


def test_no_bad_row_is_no_proof_of_none() -> None:
    moments = Moments(2)
    for _ in range(50):
        cell = Cell(1)
        cell.bins_cb[:, 0] = cell.now_c[:] = 1000, 1000, 0, 900
        moments.add_video(cell)
    found = risk(moments, 0.95)
    assert found.error_k[0] == 0
    assert 0.05 < found.error_high_k[0] < 0.1  # as of 50 rows, not of 50,000


def test_a_group_has_its_own_figures(tmp_path: Path) -> None:
    write_labels(tmp_path, facts(0, label="cup"), "day")
    write_labels(tmp_path, facts(1, label="car"), "night")
    found = swept(tmp_path)
    assert set(found.groups) == {Group("day", "cup", "sam2_nano"), Group("night", "car", "sam2_nano")}
    alone = sweep(find_labels(str(tmp_path), StorageSettings(), ["night"]), Policy())
    assert found.groups[Group("night", "car", "sam2_nano")].accepted_k.tolist() == alone.overall.accepted_k.tolist()


def test_examples_lie_on_the_side_that_they_say_and_are_the_same_each_time(tmp_path: Path) -> None:
    for number in range(6):
        write_labels(tmp_path, facts(number))
    found = swept(tmp_path, threads=3)
    assert len(found.examples) > 40
    for one in found.examples:
        assert one.compared <= found.thresholds_k[one.bin]
        assert one.bin == 0 or one.compared > found.thresholds_k[one.bin - 1]
    assert found.examples == swept(tmp_path, threads=1).examples


def test_the_policy_is_that_of_the_labels(tmp_path: Path) -> None:
    policy = Policy(name="strict", max_uncertainty=0.1234)
    write_labels(tmp_path, facts(0), policy=policy)
    labels = find_labels(str(tmp_path), StorageSettings())
    assert policy_of(labels) == policy
    found = sweep(labels, policy)
    assert found.thresholds_k[found.now] == 0.1234
    assert found.now in found.told


def test_labels_of_an_older_schema_are_swept_too(tmp_path: Path) -> None:
    table = facts(0, auto=False, across_cut=False, score_source="iou_tracked")
    file = write_labels(tmp_path, table)
    newest = swept(tmp_path)
    rows = pq.read_table(file, partitioning=None).drop_columns(["iou_stacked", "auto", "across_cut"])
    said = {**rows.schema.metadata, b"masksieve.schema_version": b'"1"'}
    pq.write_table(rows.replace_schema_metadata(said), file)
    assert swept(tmp_path).overall.accepted_k.tolist() == newest.overall.accepted_k.tolist()


def test_a_file_that_cannot_be_read_is_left_out_and_told(tmp_path: Path) -> None:
    write_labels(tmp_path, facts(0))
    broken = write_labels(tmp_path, facts(1))
    broken.write_bytes(broken.read_bytes()[:-500])
    found = swept(tmp_path)
    assert found.videos == 1
    assert [file for file, _ in found.left_out] == [str(broken)]
    (tmp_path / "labels/drop=day" / f"{video_id(0)}.parquet").unlink()
    with pytest.raises(SweepError, match="labels that can be read"):
        swept(tmp_path)


def test_what_cannot_be_swept_is_said(tmp_path: Path) -> None:
    with pytest.raises(SweepError, match="no folder"):
        swept(tmp_path / "nowhere")
    with pytest.raises(SweepError, match="no Parquet file"):
        swept(tmp_path)
    write_labels(tmp_path / "nan", facts(0, iou_stacked=float("nan"), score_source="iou_stacked"))
    with pytest.raises(SweepError, match="rows with a score"):
        swept(tmp_path / "nan")
    write_labels(tmp_path / "untracked", facts(0, visibility="untracked"))
    with pytest.raises(SweepError, match="none of them one"):
        swept(tmp_path / "untracked")
    write_labels(tmp_path / "out", facts(0))
    with pytest.raises(SweepError, match="choose among day"):
        find_labels(str(tmp_path / "out"), StorageSettings(), ["nigth"])
    write_truth(tmp_path / "truth.parquet", [facts(9)])
    labels = find_labels(str(tmp_path / "out"), StorageSettings())
    with pytest.raises(SweepError, match="truth of the videos"):
        sweep(labels, Policy(), truth=load_truth(tmp_path / "truth.parquet", labels))
    (tmp_path / "truth").mkdir()
    loose = find_labels(str(next((tmp_path / "out").rglob("*.parquet"))), StorageSettings())
    with pytest.raises(TruthError, match="truth"):
        load_truth(tmp_path / "truth", loose)


@pytest.mark.parametrize(("score", "coverage"), [(1.0, 1.0), (0.0, 0.0)])
def test_all_accepted_and_none_accepted_are_curves_too(score: float, coverage: float, tmp_path: Path) -> None:
    same = {"visibility": "visible", "score_source": "iou_stacked", "iou_stacked": score, "temporal_iou": 1.0}
    write_labels(tmp_path, facts(0, area_change=0.0, across_cut=False, prompted=None, auto=False, **same))
    found = swept(tmp_path)
    assert found.overall.coverage_k[found.now] == coverage
    assert found.overall.coverage_k[-2] == 1.0
