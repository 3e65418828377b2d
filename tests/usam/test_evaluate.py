"""An evaluation judges the right rows, compares scores on the same draws of videos, and says what it is about."""

from __future__ import annotations

import csv
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from usam.bootstrap import bootstrap, interval
from usam.curves import Replacement
from usam.errors import EvaluationError
from usam.evaluate import Evaluation, Score, Truth, evaluate, paper_applications
from usam.metrics import pearson
from usam.report import ablation_table, write_report


def columns(videos: int = 40, per: int = 25, seed: int = 0) -> tuple[Truth, dict[str, Score], dict[str, Replacement]]:
    """Videos that differ in difficulty, a good score, a middling one and one that knows nothing."""
    rng = np.random.default_rng(seed)
    n = videos * per
    hard = rng.normal(0, 1, videos).repeat(per)
    quality = 1 / (1 + np.exp(-(1 + hard + rng.normal(0, 1, n))))
    visible, predicted = rng.random(n) > 0.1, rng.random(n) > 0.05
    iou = np.where(visible & predicted, quality, 0.0)
    scores = {
        "head": Score(1 - np.clip(quality + rng.normal(0, 0.08, n), 0, 1), True),
        "sam_score": Score(1 - np.clip(quality + rng.normal(0, 0.3, n), 0, 1), True),
        "coin": Score(np.where(visible, rng.random(n), np.nan)),
    }
    ious = {"iou": iou, "iou_unsupervised": iou * rng.random(n), "iou_dense_prompt": np.sqrt(iou)}
    return Truth(np.arange(videos).repeat(per), iou, visible, predicted), scores, paper_applications(ious)


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    return evaluate(*columns(), baseline="sam_score", replicates=200)


def test_rows_are_told_apart() -> None:
    truth = Truth(["a", "a", "b", "b", "c"], [0.8, 0, 0.6, 0, 1], [1, 1, 1, 0, 0], [1, 0, 1, 1, 0])
    uncertainty = [0.2, math.nan, 0.4, 0.3, math.inf]
    result = evaluate(truth, {"s": Score(uncertainty, True)}, {}, baseline="s", replicates=0)
    rows = result.rows
    assert (rows.rows, rows.judged, rows.videos, rows.missed, rows.false, rows.empty) == (5, 2, 2, 1, 1, 1)
    assert rows.coverage == pytest.approx(0.4)
    assert rows.mean_iou == pytest.approx(0.7)
    assert rows.mean_iou_visible == pytest.approx(1.4 / 3)
    assert result.value("pearson", "pooled", "s").value == pytest.approx(1)
    assert result.value("calibration_error", "pooled", "s").value == pytest.approx(0)


def test_a_better_score_is_ahead_everywhere(evaluation: Evaluation) -> None:
    compared = [f for f in evaluation.figures if f.score == "head"]
    assert len(compared) == 4 + 3 + 2 * len(evaluation.curves)
    for figure in compared:
        if figure.scope in ("pooled", "within video", "segmentation"):
            assert figure.ahead > 0, figure
            assert figure.ahead_low > 0, figure
        if figure.metric != "calibration_error":  # an absolute value: draws of it lie above it
            assert figure.low <= figure.value <= figure.high


def test_a_coin_is_worth_nothing(evaluation: Evaluation) -> None:
    for metric, scope in [("pearson", "pooled"), ("spearman", "within video"), ("relative_area", "segmentation")]:
        figure = evaluation.value(metric, scope, "coin")
        assert figure.low < 0 < figure.high
    aurc = evaluation.value("aurc", "pooled", "coin")
    assert aurc.low < aurc.random < aurc.high
    assert evaluation.value("aurc", "pooled", "head").value > aurc.oracle


def test_the_baseline_is_not_ahead_of_itself(evaluation: Evaluation) -> None:
    for figure in evaluation.figures:
        if figure.score == "sam_score":
            assert (figure.ahead, figure.ahead_low, figure.ahead_high) == (0, 0, 0)


def test_only_scores_that_predict_iou_are_calibrated(evaluation: Evaluation) -> None:
    with pytest.raises(EvaluationError, match="worked out"):
        evaluation.value("calibration_error", "pooled", "coin")


def test_order_of_rows_and_names_of_videos_change_nothing(evaluation: Evaluation) -> None:
    truth, scores, applications = columns()
    order = np.random.default_rng(1).permutation(1000)
    shuffled = evaluate(
        Truth(
            np.array([f"video {v:02d}" for v in np.asarray(truth.video_n)])[order],
            np.asarray(truth.iou_n)[order], np.asarray(truth.visible_n)[order], np.asarray(truth.predicted_n)[order],
        ),
        {name: Score(np.asarray(s.uncertainty_n)[order], s.predicts_iou) for name, s in scores.items()},
        {name: Replacement(a.base_n[order], a.better_n[order]) for name, a in applications.items()},
        baseline="sam_score", replicates=200,
    )  # fmt: skip
    for a, b in zip(evaluation.figures, shuffled.figures, strict=True):
        assert (a.value, a.low, a.ahead_high) == pytest.approx((b.value, b.low, b.ahead_high), abs=1e-9, nan_ok=True)


def test_curves_start_and_end_at_the_means(evaluation: Evaluation) -> None:
    for curves in evaluation.curves.values():
        assert len({round(float(curve[0]), 9) for curve in curves.values()}) == 1
        assert len({round(float(curve[-1]), 9) for curve in curves.values()}) == 1
        assert np.all(curves["oracle"] >= curves["head"] - 1e-9)
    assert evaluation.risks["head"][-1] == pytest.approx(1 - evaluation.rows.mean_iou)


def test_the_report_has_every_figure_and_its_rows(evaluation: Evaluation, tmp_path: Path) -> None:
    _, scores, applications = columns()
    known = {"segmentation": {"both": np.nan_to_num(np.asarray(scores["head"].uncertainty_n))}}
    files = write_report(evaluation, tmp_path / "out", [ablation_table(applications, known)])
    assert {file.name for file in files} == {
        "rows.csv", "quality.csv", "replacement.csv", "token_ablation.csv", "evaluation.md", "risk.png",
        "replacement.png",
    }  # fmt: skip
    table = list(csv.DictReader((tmp_path / "out" / "quality.csv").open()))
    table += list(csv.DictReader((tmp_path / "out" / "replacement.csv").open()))
    assert len(table) == len(evaluation.figures)
    for row in table:
        figure = evaluation.value(row["metric"], row["scope"], row["score"])
        assert float(row["value"]) == figure.value
        assert float(row["coverage"]) == evaluation.rows.coverage
    text = (tmp_path / "out" / "evaluation.md").read_text()
    assert "(A - A_random) / (A_oracle - A_random)" in text
    assert f"{evaluation.rows.missed} are missed" in text
    with Image.open(tmp_path / "out" / "replacement.png") as image:
        assert min(image.size) > 500


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    """Rows of a video share half of their noise: intervals over rows would be far too narrow."""
    rng = np.random.default_rng(0)
    hits, trials, videos, per = 0, 150, 60, 8
    video = np.arange(videos).repeat(per)
    for trial in range(trials):
        x = rng.normal(size=videos).repeat(per) + rng.normal(size=videos * per)
        y = x + 2 * (rng.normal(size=videos).repeat(per) + rng.normal(size=videos * per))
        draws = bootstrap([lambda _, w, x=x, y=y: pearson(x, y, w)], video, videos, 200, seed=trial)  # type: ignore[misc]
        low, high = interval(draws[:, 0])
        hits += low <= 1 / math.sqrt(5) <= high
    assert 0.88 <= hits / trials <= 0.99


@pytest.mark.slow
def test_a_million_rows_take_seconds() -> None:
    truth, scores, applications = columns(videos=4000, per=250)
    start = time.process_time()
    evaluate(truth, scores, {"segmentation": applications["segmentation"]}, baseline="sam_score", replicates=0)
    assert time.process_time() - start < 30


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"iou_n": [0.5, math.nan, 0.5]}, "1 of 3 judged rows"),
        ({"video_n": [1, 2]}, "3 values in the column video"),
        ({"visible_n": [0, 0, 0]}, "none among 3"),
    ],
)
def test_columns_that_cannot_be_judged_are_refused(change: dict[str, Any], message: str) -> None:
    good = {"video_n": [1, 1, 2], "iou_n": [0.1, 0.5, 0.9], "visible_n": [1, 1, 1], "predicted_n": [1, 1, 1]}
    with pytest.raises(EvaluationError, match=message):
        evaluate(Truth(**{**good, **change}), {"s": Score([1, 2, 3])}, {}, baseline="s", replicates=0)


def test_scores_and_names_that_do_not_fit_are_refused() -> None:
    truth = Truth([1, 1], [0.1, 0.5], [1, 1], [1, 1])
    with pytest.raises(EvaluationError, match="the score s"):
        evaluate(truth, {"s": Score([1])}, {}, baseline="s", replicates=0)
    with pytest.raises(EvaluationError, match="other"):
        evaluate(truth, {"s": Score([1, 2])}, {}, baseline="other", replicates=0)
    with pytest.raises(EvaluationError, match="application task"):
        evaluate(
            truth, {"s": Score([1, 2])}, {"task": Replacement(np.zeros(2), np.array([1, math.nan]))},
            baseline="s", replicates=0,
        )  # fmt: skip


def test_an_application_ranks_by_what_it_is_given(evaluation: Evaluation, tmp_path: Path) -> None:
    """A score for one application has no correlations; a gap replaces the uncertainty only where it is named."""
    truth, scores, applications = columns()
    gain = {name: pair.gain_n for name, pair in applications.items()}
    scores["gaps"] = Score(None, applications={"task": gain["task"]})
    scores["head"] = Score(scores["head"].uncertainty_n, True, {"prompt": gain["prompt"]})
    told: list[tuple[int, int]] = []
    result = evaluate(
        truth, scores, applications, baseline="sam_score", replicates=5, progress=lambda *n: told.append(n)
    )
    assert told == [(i, 5) for i in range(1, 6)]
    assert {(f.metric, f.scope) for f in result.figures if f.score == "gaps"} == {
        ("relative_area", "task"), ("published_ratio", "task"),
    }  # fmt: skip
    assert result.value("relative_area", "task", "gaps").value == pytest.approx(1)
    assert result.value("relative_area", "prompt", "head").value == pytest.approx(1)
    for application in ("task", "segmentation"):
        before = evaluation.value("relative_area", application, "head").value
        assert result.value("relative_area", application, "head").value == before
    assert "gaps" in result.curves["task"]
    assert "gaps" not in result.curves["prompt"]
    assert "gaps" not in result.risks
    write_report(result, tmp_path)
    with pytest.raises(EvaluationError, match="baseline"):
        evaluate(truth, scores, applications, baseline="gaps", replicates=0)
    scores["gaps"] = Score(None, applications={"task": np.full(len(gain["task"]), math.nan)})
    with pytest.raises(EvaluationError, match="gaps for task"):
        evaluate(truth, scores, applications, baseline="sam_score", replicates=0)
