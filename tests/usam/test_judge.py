"""Banks, SAM2's score and entropies are judged on the same rows, each by what it is meant for."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from usam.errors import EvaluationError, HeadError
from usam.features import FEATURES
from usam.heads import HeadBank, HeadCard
from usam.judge import (
    FITTED_SCORE,
    bank_contenders,
    exam_of,
    fit_isotonic,
    heads_table,
    judge,
    predictions,
    ranks_table,
    require_other_videos,
    rivals,
    stacker_contender,
)
from usam.shard import Shard
from usam.stacker import Stacker, StackerCard

HEADS = ("iou_tiny", "iou_large", "iou_dense_prompt", "iou_unsupervised", "model_gap", "prompt_gap", "task_gap")
Make = Callable[..., Shard]
Bank = Callable[..., HeadBank]


@pytest.mark.parametrize("kind", ["frames", "tracked"])
def test_heads_that_read_the_truth_win_their_applications(judged_shard: Make, reading_bank: Bank, kind: str) -> None:
    heads = HEADS if kind == "frames" else (*HEADS, "iou_tracked")
    exam = exam_of(judged_shard(kind=kind))
    contenders = [*bank_contenders("ours", reading_bank(heads), exam), *rivals(exam, fit_isotonic(exam))]
    result = judge(exam, contenders, replicates=20)
    assert result.baseline == FITTED_SCORE
    assert set(result.curves) == {"model", "prompt", "task", "segmentation"}
    for application in ("model", "task", "segmentation"):
        assert result.value("relative_area", application, "ours").value == pytest.approx(1, abs=1e-6), application
    other = [c for c in contenders if c.name == "ours_differences"]
    assert set(other[0].score.applications) == (
        {"model", "prompt", "task"} if kind == "frames" else {"model", "prompt"}
    )
    assert result.value("relative_area", "model", "ours_differences").value > 0.9
    assert result.value("spearman", "pooled", "ours").value == pytest.approx(1)
    for name in ("sam_score", FITTED_SCORE, "H_Std"):
        assert abs(result.value("relative_area", "model", name).value) < 0.5
    fitted, raw = (result.value("calibration_error", "pooled", name) for name in (FITTED_SCORE, "sam_score"))
    assert fitted.value < raw.value / 2


def test_rows_are_the_deployed_models_and_prompts_are_left_out_where_masks_are_propagated(judged_shard: Make) -> None:
    frames, tracked = judged_shard("f"), judged_shard("t", kind="tracked")
    assert len(exam_of(frames).rows_n) == 12 * 24
    exam = exam_of(tracked)
    assert len(exam.rows_n) == 12 * 23
    assert exam.notes[0].startswith("12 rows on prompted frames")
    rows = judge(exam, rivals(exam), replicates=0).rows
    assert (rows.judged, rows.videos) == (int(exam.judged_n.sum()), 12)
    with pytest.raises(EvaluationError, match="harvest that model too"):
        exam_of(frames, size="large")
    with pytest.raises(EvaluationError, match="chosen or best"):
        exam_of(frames, of="first")


def test_the_best_of_three_is_judged_with_its_own_token_and_score(judged_shard: Make, reading_bank: Bank) -> None:
    shard = judged_shard()
    exam = exam_of(shard, of="best")
    assert np.asarray(exam.truth.iou_n) == pytest.approx(shard.column("iou"))
    best = shard.column("best").astype(int)
    scores = np.stack([shard.column(f"candidate_score_{j}") for j in range(3)], 1)
    assert 1 - np.asarray(rivals(exam)[0].score.uncertainty_n) == pytest.approx(scores[np.arange(len(best)), best - 1])
    tokens = np.concatenate([shard.tokens_n5d[:, 0], shard.tokens_n5d[np.arange(len(best)), best + 1]], 1)
    bank = reading_bank()
    assert predictions(bank, exam)["iou_unsupervised"] == pytest.approx(
        bank(torch.from_numpy(tokens))["iou_unsupervised"].numpy()
    )
    assert ranks_table(exam, bank_contenders("ours", bank, exam)).rows[0][1] == "1 - iou_tiny"


def test_a_bank_is_fed_the_token_that_its_card_names(judged_shard: Make, reading_bank: Bank) -> None:
    exam = exam_of(judged_shard())
    own, before = (predictions(reading_bank(offset=offset), exam)["iou_unsupervised"] for offset in (1, 0))
    true_n = np.asarray(exam.truth.iou_n)
    assert np.corrcoef(own, true_n)[0, 1] > 0.9
    assert abs(np.corrcoef(before, true_n)[0, 1]) < 0.5


def test_many_rows_are_predicted_in_parts(
    judged_shard: Make, reading_bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    exam = exam_of(judged_shard())
    whole = predictions(reading_bank(), exam)
    monkeypatch.setattr("usam.judge._PREDICT_ROWS", 7)
    for head, values in predictions(reading_bank(), exam).items():
        assert values == pytest.approx(whole[head], abs=1e-6)


def test_heads_are_held_against_their_own_targets(judged_shard: Make, reading_bank: Bank) -> None:
    exam = exam_of(judged_shard())
    table = heads_table("ours", reading_bank(), exam, replicates=20)
    by_head = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert set(by_head) == set(HEADS)
    for head, row in by_head.items():
        assert float(row["spearman"]) > 0.99, head  # targets of gaps are clipped
        assert float(row["low"]) <= float(row["pearson"]) <= float(row["high"])
        assert np.isnan(float(row["sam_score_pearson"])) == head.endswith("gap")
    assert float(by_head["iou_tiny"]["ahead_low"]) > 0
    assert abs(float(by_head["model_gap"]["mean_target"])) < 0.1


def test_what_was_not_measured_is_left_out_and_said(judged_shard: Make, reading_bank: Bank) -> None:
    half = np.where(np.arange(24) % 2, 0.5, np.nan)
    shard = judged_shard(
        iou_large=[None] * 24, H_Std=[None if np.isnan(x) else x for x in half],
        iou_dense_prompt=[None if np.isnan(x) else x for x in half],
    )  # fmt: skip
    exam = exam_of(shard)
    assert set(exam.applications) == {"task", "segmentation"}
    assert any("iou_dense_prompt was not measured on" in note for note in exam.notes)
    assert "Not measured here: model, prompt." in exam.notes
    assert [c.name for c in rivals(exam)] == ["sam_score"]
    judge(exam, [*rivals(exam), *bank_contenders("ours", reading_bank(), exam)], replicates=0)
    assert "iou_large" not in [row[0] for row in heads_table("ours", reading_bank(), exam, replicates=0).rows]


def test_a_bank_without_gaps_ranks_by_its_iou_and_one_without_iou_only_by_gaps(
    judged_shard: Make, reading_bank: Bank
) -> None:
    exam = exam_of(judged_shard())
    (plain,) = bank_contenders("plain", reading_bank(("iou_unsupervised",)), exam)
    (gaps,) = bank_contenders("gaps", reading_bank(("task_gap",)), exam)
    assert gaps.score.uncertainty_n is None
    result = judge(exam, [plain, gaps, *rivals(exam)], replicates=0)
    assert {f.scope for f in result.figures if f.score == "gaps"} == {"task"}
    assert {"model", "prompt", "task", "segmentation"} <= {f.scope for f in result.figures if f.score == "plain"}
    assert ranks_table(exam, [plain]).rows[0][2] == "1 - iou_unsupervised"
    with pytest.raises(HeadError, match="a head of the judged masks"):
        bank_contenders("none", reading_bank(("iou_large",)), exam)


def test_foreign_banks_and_seen_videos_are_refused(
    judged_shard: Make, reading_bank: Bank, make_state: Callable[..., dict[str, torch.Tensor]]
) -> None:
    exam = exam_of(judged_shard())
    wide = HeadBank(["iou_tiny"], [make_state(16)], HeadCard("sam2_nano", "a" * 64))
    with pytest.raises(HeadError, match="heads of width 8, as the tokens are, got 16"):
        predictions(wide, exam)
    with pytest.raises(HeadError, match="whose tokens were harvested"):
        predictions(reading_bank(sha256="c" * 64), exam)
    predictions(reading_bank(sha256=""), exam)
    with pytest.raises(EvaluationError, match="12 in both, v0 among them"):
        require_other_videos(exam, exam_of(judged_shard("again", seed=1)))
    require_other_videos(exam, exam_of(judged_shard("other", prefix="w")))
    require_other_videos(exam, exam_of(judged_shard("elsewhere", dataset="mose")))
    with pytest.raises(EvaluationError, match="sam_score twice"):
        judge(exam, rivals(exam) * 2, replicates=0)
    with pytest.raises(EvaluationError, match="none among"):
        exam_of(judged_shard("empty", predicted=[False] * 24))


def test_a_stacker_is_fed_its_heads_in_their_order_and_the_tracks_features(
    judged_shard: Make, reading_bank: Bank
) -> None:
    exam = exam_of(judged_shard(kind="tracked"))
    bank = reading_bank((*HEADS, "iou_tracked"))
    wanted = ("task_gap", "iou_tracked")
    inputs = len(wanted) + len(FEATURES)
    states = {"mean": torch.zeros(inputs), "deviation": torch.ones(inputs)}
    for i, (rows, columns) in enumerate([(inputs, 4), (4, 4), (4, 1)]):
        generator = torch.Generator().manual_seed(i)
        states[f"weight.{i}"] = torch.randn(2, rows, columns, generator=generator)
        states[f"bias.{i}"] = torch.zeros(2, 1, columns)
    stacker = Stacker(states, StackerCard("sam2_nano", "a" * 64, "h", wanted))
    contender = stacker_contender("stacked", bank, stacker, exam)
    said = predictions(bank, exam)
    heads_nh = np.stack([said[head] for head in wanted], 1).astype(np.float32)
    features_nf = np.stack([exam.column(name) for name in FEATURES], 1).astype(np.float32)
    mine = stacker(torch.from_numpy(heads_nh), torch.from_numpy(features_nf)).numpy()
    assert 1 - np.asarray(contender.score.uncertainty_n) == pytest.approx(mine)
    assert set(contender.score.applications) == {"model", "prompt", "task"}
    judge(exam, [contender, *rivals(exam)], replicates=0)
    with pytest.raises(HeadError, match="no task_gap"):
        stacker_contender("stacked", reading_bank(("iou_tracked",)), stacker, exam)
    with pytest.raises(HeadError, match="--mode tracked"):
        stacker_contender("stacked", bank, stacker, exam_of(judged_shard("frames")))
