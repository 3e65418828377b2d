"""Calibration certifies the largest thresholds that the truth supports, says what it takes where it cannot, and refuses
what nothing can be certified from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipeline.calibrate import Calibrated, calibrate
from pipeline.calibrate_pool import STEPS, Group
from pipeline.calibrate_request import Request
from pipeline.certificate import evidence, find_evidence, list_certificates, write_certificate
from pipeline.certificate_parts import ErrorRate, MeanIou
from pipeline.cli.entry import main
from pipeline.ledger import Ledger
from pipeline.policy import GroupThreshold, Policy, load_policy
from pipeline.records import read_metadata
from pipeline.retune import derive_all
from pipeline.settings import load_settings
from pipeline.storage.objects import ObjectStore
from pipeline.truth import open_truth

from .judged_lake import FACTS, add_video, add_videos, write_truth

Rows = list[dict[str, Any]]
TEN_PERCENT = Request(ErrorRate(bad_iou=0.5, at_most=0.1))
SETTINGS = load_settings(None, {})


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Rows]:
    """An output of 90 videos of source `day` and 15 of source `night`, with the truth of their rows."""
    out = tmp_path_factory.mktemp("judged") / "out"
    return out, [*add_videos(out, 90, seed=1), *add_videos(out, 15, seed=2, drop="night", label="hat")]


@pytest.fixture(scope="session")
def certified(drawn: tuple[Path, Rows], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Calibrated]:
    """A copy of the output that was calibrated once, and what came of it."""
    folder = tmp_path_factory.mktemp("certified")
    out = Path(shutil.copytree(drawn[0], folder / "out"))
    return out, run(out, write_truth(drawn[1], folder / "truth.parquet"))


@pytest.fixture
def lake(drawn: tuple[Path, Rows], tmp_path: Path) -> Path:
    """A copy that a test may add certificates to."""
    return Path(shutil.copytree(drawn[0], tmp_path / "out"))


@pytest.fixture
def truth(drawn: tuple[Path, Rows], tmp_path: Path) -> Path:
    return write_truth(drawn[1], tmp_path / "truth.parquet")


def run(out: Path, truth: Path, request: Request = TEN_PERCENT, **changes: Any) -> Calibrated:
    return calibrate(str(out), open_truth(truth), replace(request, **changes), SETTINGS)


def call(*words: object) -> int:
    with pytest.raises(SystemExit) as exited:
        main([str(word) for word in words])
    return int(exited.value.code or 0)


def test_the_threshold_keeps_the_promise_on_the_certifying_videos(certified: Any, drawn: Any) -> None:
    out, found = certified
    (group,) = found.certificate.groups
    assert found.certificate.status == "certified"
    ids = {found.certifying.video_ids[one] for one in np.unique(found.certifying.video_n)}
    mapping = {found.mapping.video_ids[one] for one in np.unique(found.mapping.video_n)}
    assert len(ids | mapping) == 105
    assert not ids & mapping
    assert 3 < len(mapping) < 22
    iou = {(row["video_id"], row["frame_index"]): row["iou"] for row in drawn[1]}
    rows = [row for path in (out / "labels").rglob("*.parquet") for row in pq.read_table(path).to_pylist()]
    here = [row for row in rows if row["video_id"] in ids]
    accepted = [row for row in here if row["uncertainty"] <= group.threshold]  # no other rule stops any of these rows
    bad = [row for row in accepted if iou[row["video_id"], row["frame_index"]] < 0.5]
    assert group.observed == pytest.approx(len(bad) / len(accepted))
    assert group.coverage == pytest.approx(len(accepted) / len(here))
    assert group.observed < group.bound <= 0.1
    assert group.threshold == group.passed[-1]
    assert group.proven is None or group.proven <= group.threshold
    assert 0.2 <= group.coverage <= group.oracle_coverage


def test_a_certified_policy_is_certified_for_these_masks_and_no_others(certified: Any) -> None:
    out, found = certified
    store, one = ObjectStore(out), found.certifying.video_ids[0]
    settings = SETTINGS.model_copy(update={"policy": found.policy})
    list(derive_all(store, [one], settings))
    metadata = read_metadata(pq.read_schema(next((out / "labels").rglob(f"{one}.parquet"))))
    assert find_evidence(store, metadata["policy"], metadata).certified
    stricter = found.policy.model_copy(update={"max_uncertainty": found.certificate.groups[0].passed[0]})
    assert find_evidence(store, stricter, FACTS).certified
    for changed in ({"max_uncertainty": 0.99}, {"auto_margin": 0.0}):
        assert not find_evidence(store, found.policy.model_copy(update=changed), FACTS).certified
    other = FACTS | {"heads_sha256": "c" * 64}
    assert "other heads" in evidence(found.policy, found.certificate, None, other).text


@pytest.mark.slow
def test_earlier_attempts_on_the_same_truth_are_counted(
    lake: Path, truth: Path, certified: Any, drawn: Any, tmp_path: Path
) -> None:
    assert certified[1].certificate.truth.attempts == 0
    write_certificate(ObjectStore(lake), certified[1].certificate)
    half = write_truth(drawn[1][: len(drawn[1]) // 2], tmp_path / "half.parquet")
    assert run(lake, half).certificate.truth.attempts == 1
    found = run(lake, truth)
    assert found.certificate.truth.attempts == 2
    assert any("2 earlier attempts" in note for note in found.notes)
    assert len(list_certificates(ObjectStore(lake))) == 3


def test_groups_share_the_confidence_and_small_ones_are_pooled(lake: Path, truth: Path, certified: Any) -> None:
    found = run(lake, truth, by=("source", "label"), min_videos=50)
    day, rest = found.certificate.groups
    assert (day.match.source, day.match.label, rest.match.anything) == ("day", "cup", True)
    assert day.level == rest.level == pytest.approx(0.05)
    assert found.policy.groups[0] == GroupThreshold(source="day", label="cup", max_uncertainty=day.threshold)
    assert rest.threshold is None  # some 12 videos cannot prove 10% at 95%
    assert rest.needs_videos == 29
    assert found.policy.groups[-1] == GroupThreshold(max_uncertainty=None)
    assert any(note.startswith("all others: not certified; about") for note in found.notes)
    assert find_evidence(ObjectStore(lake), found.policy, FACTS).certified
    assert certified[1].certificate.groups[0].level == pytest.approx(0.1)


def test_a_few_frames_of_a_video_stand_for_all_of_it(lake: Path, drawn: Any, tmp_path: Path) -> None:
    half = {row["video_id"] for row in drawn[1][::16]}
    some = [row for row in drawn[1] if row["video_id"] not in half or row["frame_index"] % 4 == 0]
    found = run(lake, write_truth(some, tmp_path / "t.parquet"))
    rows = found.certifying
    assert {2, 8} == set(np.bincount(rows.video_n)) - {0}
    assert set(np.bincount(rows.video_n, rows.weight_n)) - {0} == {8}


def test_what_was_calibrated_on_some_drops_accepts_nothing_of_others(lake: Path, truth: Path) -> None:
    found = run(lake, truth, drops=("day",))
    day, rest = found.certificate.groups
    assert (day.match.source, day.level, rest.threshold) == ("day", pytest.approx(0.1), None)
    assert day.threshold is not None
    (night,) = [one for one in Ledger(ObjectStore(lake)).read_all() if one.first_seen == "night"][:1]
    settings = SETTINGS.model_copy(update={"policy": found.policy})
    ((_, derived),) = derive_all(ObjectStore(lake), [night.video_id], settings)
    assert derived.counts["accept"] == 0
    both = run(
        lake, truth, drops=("day", "night"), policy=Policy(groups=(GroupThreshold(label="hat", max_uncertainty=0.1),))
    )
    assert [str(one.match) for one in both.certificate.groups] == [
        "source day, label hat", "source day", "source night, label hat", "source night", "all",
    ]  # fmt: skip


def test_what_is_not_certified_is_not_accepted_and_says_what_it_takes(lake: Path, truth: Path) -> None:
    found = run(lake, truth, promise=ErrorRate(bad_iou=0.5, at_most=0.03), start_coverage=0.5)
    (group,) = found.certificate.groups
    assert found.certificate.status == "not_certified"
    assert (group.threshold, group.passed) == (None, ())
    assert found.policy.groups == (GroupThreshold(max_uncertainty=None),)
    assert not find_evidence(ObjectStore(lake), found.policy, FACTS).certified
    assert any("more" in note for note in found.notes)


def test_mean_iou_may_be_promised(lake: Path, truth: Path) -> None:
    found = run(lake, truth, promise=MeanIou(at_least=0.65))
    (group,) = found.certificate.groups
    assert group.threshold is not None
    assert group.observed < group.bound <= 0.35
    assert np.diff(found.certificate.iou_map.value).min() >= 0


@pytest.mark.slow
def test_what_does_not_fit_the_review_budget_is_held(lake: Path, truth: Path) -> None:
    free = run(lake, truth, videos_per_day=100)
    load = free.certificate.review.stretches_per_day
    assert free.certificate.status == "certified"
    tight = run(lake, truth, videos_per_day=100, review_budget=load / 3)
    assert tight.certificate.status == "over_budget"
    assert tight.certificate.groups[0].threshold == free.certificate.groups[0].threshold
    assert tight.certificate.review.stretches_per_day <= load / 3
    assert tight.policy.hold_above_uncertainty is not None or tight.policy.review_stretches_per_video is not None
    assert find_evidence(ObjectStore(lake), tight.policy, FACTS).certified


@pytest.mark.slow
def test_verdicts_certify_no_threshold_beyond_what_was_audited(lake: Path, drawn: Any, tmp_path: Path) -> None:
    uncertainty = {
        (row["video_id"], row["frame_index"]): row["uncertainty"]
        for path in (lake / "labels").rglob("*.parquet") for row in pq.read_table(path).to_pylist()
    }  # fmt: skip
    audited = [
        {**dict(list(row.items())[:3]), "verdict": "accept" if row["iou"] >= 0.5 else "reject", "audit": True}
        for row in drawn[1] if uncertainty[row["video_id"], row["frame_index"]] <= 0.2
    ]  # fmt: skip
    found = run(lake, write_truth(audited, tmp_path / "audit.parquet"))
    assert found.certificate.iou_map is None
    assert 0 < found.certificate.groups[0].threshold <= 0.2
    assert found.certificate.groups[0].passed[-1] <= 0.2
    weighted = [row | {"review_probability": 0.5 if row["verdict"] == "reject" else 1.0} for row in audited]
    heavier = run(lake, write_truth(weighted, tmp_path / "weighted.parquet"), start_coverage=0.99)
    plain = run(lake, tmp_path / "audit.parquet", start_coverage=0.99)
    assert heavier.certificate.groups[0].observed > 1.5 * plain.certificate.groups[0].observed


def every(value: float) -> Callable[[Rows], Rows]:
    return lambda rows: [row | {"iou": value} for row in rows]


@pytest.mark.parametrize(("change", "words", "said"), [
    (lambda rows: rows[:80], ("--at-most", 0.05),
     "at least 50 labelled videos for at most 5% of accepted masks below IoU 0.5 at 90% confidence"),
    (every(0.9), ("--at-most", 0.1), "all right at IoU 0.5 (all accepted, for verdicts)"),
    (every(0.1), ("--at-most", 0.1), "all wrong at IoU 0.5 (all rejected, for verdicts)"),
    (every(0.7), ("--mean-iou", 0.6), "IoU 0.7 each"),
    (lambda rows: [row | {"video_id": "ab" * 32} for row in rows[:8]], ("--at-most", 0.1), "0 of its videos there"),
    (lambda rows: [row | {"iou": float("nan")} for row in rows[:1]], ("--at-most", 0.1), "iou in [0, 1], got nan"),
    (list, (), "one promise, got none"),
    (list, ("--at-most", 0.1, "--mean-iou", 0.8), "one promise, got --at-most and --mean-iou"),
    (list, ("--at-most", 5), "--at-most as a share between 0 and 1, got 5"),
    (list, ("--at-most", 0.1, "--confidence", 90), "--confidence as a share"),
    (list, ("--at-most", 0.1, "--by", "colour"), "--by out of source, label, model, got colour"),
    (list, ("--at-most", 0.1, "--drop", "dusk"), "none in dusk"),
    (list, ("--at-most", 0.1, "--review-budget", 3), "say it by --videos-per-day"),
    (list, ("--at-most", 0.1, "--out", "/"), "a writable file /, got a folder"),
])  # fmt: skip
def test_bad_input_is_one_clear_line_and_exit_code_2(
    lake: Path, drawn: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    change: Callable[[Rows], Rows], words: tuple[Any, ...], said: str,
) -> None:  # fmt: skip
    truth = write_truth(change(drawn[1]), tmp_path / "truth.parquet")
    assert call("calibrate", lake, "--truth", truth, "--out", tmp_path / "p.yaml", *words) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert "Traceback" not in captured.err
    assert not (tmp_path / "p.yaml").exists()
    assert not (lake / "certificates").exists()


@pytest.mark.parametrize(("policy", "said"), [
    ({"max_uncertain": 0.2}, "did you mean 'max_uncertainty'?"),
    ({"max_area_share": 1e-9}, "masks that a threshold may accept, got none of"),
    ({"certificate": "0" * 16}, "certificate 0000000000000000"),
])  # fmt: skip
def test_policies_that_cannot_be_calibrated_are_refused(
    lake: Path, truth: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], policy: dict[str, Any], said: str
) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(yaml.safe_dump(policy))
    assert call("calibrate", lake, "--truth", truth, "--at-most", 0.1, "--policy", path, "--out", tmp_path / "p") == 2
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_masks_of_several_processes_are_not_calibrated_together(
    lake: Path, drawn: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bigger = FACTS | {"model": {"name": "sam2_micro", "sha256": "d" * 64}}
    other = add_video(lake, "other", [0.9, 0.5], metadata=bigger)
    rows = [*drawn[1], {"video_id": other, "frame_index": 0, "object_id": 1, "iou": 0.9}]
    words = ("calibrate", lake, "--truth", write_truth(rows, tmp_path / "t.parquet"), "--at-most", 0.1, "--out",
             tmp_path / "p.yaml")  # fmt: skip
    assert call(*words) == 2
    assert "masks of one model, got sam2_" in capsys.readouterr().err
    assert call(*words, "--by", "model", "--min-videos", 50) == 0
    assert {one.model.name for one in list_certificates(ObjectStore(lake))[0].processes} == {"sam2_nano", "sam2_micro"}
    new_heads = add_video(lake, "heads", [0.9, 0.5], metadata=FACTS | {"heads_sha256": "e" * 64})
    rows.append({"video_id": new_heads, "frame_index": 0, "object_id": 1, "iou": 0.9})
    write_truth(rows, tmp_path / "t.parquet")
    capsys.readouterr()
    assert call(*words, "--by", "model") == 2
    assert "other heads" in capsys.readouterr().err


def test_a_policy_that_rests_on_a_certificate_for_another_model_is_refused(
    certified: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, out = certified[1].certificate, tmp_path / "other"
    rows = add_videos(out, 3, metadata=FACTS | {"model": {"name": "sam2_micro", "sha256": "d" * 64}})
    write_certificate(ObjectStore(out), one)
    (tmp_path / "policy.yaml").write_text(yaml.safe_dump({"certificate": one.id}))
    words = ("--at-most", 0.2, "--policy", tmp_path / "policy.yaml", "--out", tmp_path / "p.yaml")
    assert call("calibrate", out, "--truth", write_truth(rows, tmp_path / "o.parquet"), *words) == 2
    assert "another model than sam2_micro" in capsys.readouterr().err


def test_broken_scores_are_refused_and_missing_ones_are_reviewed(
    lake: Path, drawn: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unscored = add_video(lake, "unscored", [None, None])
    rows = [*drawn[1], {"video_id": unscored, "frame_index": 0, "object_id": 1, "iou": 0.0}]
    found = run(lake, write_truth(rows, tmp_path / "t.parquet"))
    assert found.certificate.truth.rows == len(rows)
    broken = add_video(lake, "broken", [float("nan"), 0.5])
    rows.append({"video_id": broken, "frame_index": 0, "object_id": 1, "iou": 0.9})
    truth = write_truth(rows, tmp_path / "t.parquet")
    assert call("calibrate", lake, "--truth", truth, "--at-most", 0.1, "--out", tmp_path / "p.yaml") == 2
    assert "scores that are numbers, got NaN or nothing in 1 of 1 rows of broken.mp4" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_writes_a_policy_and_a_picture_and_prints_the_figures(
    lake: Path, truth: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("calibrate", lake, "--truth", truth, "--at-most", 0.1, "--out", tmp_path / "p/policy.yaml")
    assert call(*words) == 0
    told = capsys.readouterr().out
    (one,) = list_certificates(ObjectStore(lake))
    policy = load_policy(tmp_path / "p/policy.yaml")
    assert policy.certificate == one.id
    assert policy.max_uncertainty == one.groups[0].threshold
    assert (tmp_path / "p/policy.reliability.png").stat().st_size > 10_000
    for said in ("certified: at most 10% of accepted masks below IoU 0.5, 90% confidence, every row counts alike",
                 f"{one.groups[0].threshold:.4f}", "review load: ", f"certificate {one.id} until ",
                 f"next: masksieve retune {lake} --policy"):  # fmt: skip
        assert said in told
    assert call(*words, "--json") == 0
    assert json.loads(capsys.readouterr().out)["certificate"]["truth"]["attempts"] == 1
    assert call(*words[:4], "--at-most", 0.03, "--start-coverage", 0.6, "--out", tmp_path / "p.yaml") == 1
    assert "not certified: " in capsys.readouterr().out
    assert load_policy(tmp_path / "p.yaml").groups == (GroupThreshold(max_uncertainty=None),)


def test_a_policy_with_groups_keeps_them(lake: Path, truth: Path) -> None:
    policy = Policy(groups=(GroupThreshold(source="night", max_uncertainty=0.1),))
    found = run(lake, truth, policy=policy)
    night, rest = found.certificate.groups
    assert (night.match.source, night.threshold) == ("night", None)
    assert rest.threshold is not None
    assert found.policy.groups[0] == GroupThreshold(source="night", max_uncertainty=None)


@given(
    scores=st.lists(st.integers(0, STEPS), min_size=200, max_size=400), stopped=st.integers(0, 300),
    always=st.integers(0, 100), start=st.floats(0.01, 0.99),
)  # fmt: skip
def test_thresholds_to_try_start_at_the_coverage_and_end_with_all_candidates(
    scores: list[int], stopped: int, always: int, start: float
) -> None:
    group = Group(len(scores) + stopped + always, always, np.bincount(scores, minlength=STEPS + 1))
    grid = group.grid(start)
    coverage = [(always + sum(one / STEPS <= limit for one in scores)) / group.rows for limit in grid.threshold_k]
    assert (np.diff(grid.threshold_k) > 0).all()
    assert grid.start == grid.threshold_k[0]
    assert coverage[-1] == pytest.approx((always + len(scores)) / group.rows)
    assert coverage[0] >= min(start, (always + len(scores) / 2) / group.rows) - 1e-9
    assert grid.threshold_k[-1] == max(scores) / STEPS


@pytest.mark.slow
def test_an_output_in_a_bucket_is_calibrated_like_a_folder(tmp_path: Path, moto_s3: Any) -> None:
    store = ObjectStore(moto_s3.new_bucket() + "/out", moto_s3.settings())
    truth = write_truth(add_videos(store, 12), tmp_path / "t.parquet")
    add_videos(tmp_path / "out", 12)
    loose = replace(TEN_PERCENT, promise=ErrorRate(bad_iou=0.5, at_most=0.4))
    settings = SETTINGS.model_copy(update={"storage": moto_s3.settings()})
    there = calibrate(store.url, open_truth(truth), loose, settings)
    here = run(tmp_path / "out", truth, loose)
    assert there.certificate.groups == here.certificate.groups
    assert list_certificates(store) == [there.certificate]


def test_the_proven_test_may_be_asked_for(certified: Any, lake: Path, truth: Path) -> None:
    (measured,) = certified[1].certificate.groups
    proven = run(lake, truth, Request(ErrorRate(bad_iou=0.5, at_most=0.3)), method="betting").certificate
    assert (certified[1].certificate.method, proven.method) == ("clustered", "betting")
    assert proven.groups[0].threshold == proven.groups[0].proven is not None
    assert measured.proven is None or measured.proven <= measured.threshold


def test_its_policy_serves_label_and_retune_and_may_ask_for_audits(lake: Path, truth: Path, tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    words = (lake, "--truth", truth, "--at-most", 0.1, "--set", "policy.audit_rate=0.1", "--out", policy)
    assert call("calibrate", *words) == 0
    written = load_policy(policy)
    assert written.audit_rate == 0.1
    assert written.certificate is not None
    assert load_settings(str(policy), {}).policy == written
