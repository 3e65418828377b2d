"""Judges uncertainties against the truth: the paper's measures, within videos too, with intervals over videos."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from usam.bootstrap import Statistic, bootstrap, interval
from usam.curves import FloatArray, Ranking, RelativeArea, Replacement, ReplacementCurve
from usam.errors import EvaluationError
from usam.metrics import CALIBRATION_BINS, Aurc, Spearman, calibration_error, pearson, within_groups

Scope = Literal["pooled", "within video"]
LOWER_IS_BETTER = ("aurc", "calibration_error")
_CURVE_SHARES = np.linspace(0, 1, 201)


@dataclass(frozen=True)
class Score:
    """An uncertainty to judge, one value per row, higher is worse; 1 - predicted IoU, or an entropy.

    Attributes:
        uncertainty_n: (n,) float; rows that are not judged may hold anything. None for a score that is only meant for
            some applications: it has no correlations.
        predicts_iou: 1 - uncertainty is meant as the IoU itself, so calibration error makes sense.
        applications: (n,) by application, where its masks are ranked by something else: a predicted gap.
    """

    uncertainty_n: ArrayLike | None
    predicts_iou: bool = False
    applications: Mapping[str, ArrayLike] = field(default_factory=dict)

    def ranking(self, application: str) -> ArrayLike | None:
        """(n,) what an application's masks are ranked by, or None if the score is not meant for it."""
        return self.applications.get(application, self.uncertainty_n)


@dataclass(frozen=True)
class Truth:
    """What is known about n rows.

    Attributes:
        video_n: (n,) names or numbers of videos.
        iou_n: (n,) IoU of the mask that was really chosen.
        visible_n: (n,) bool, the truth is not empty. predicted_n: (n,) bool, the mask is not.
    """

    video_n: ArrayLike
    iou_n: ArrayLike
    visible_n: ArrayLike
    predicted_n: ArrayLike


@dataclass(frozen=True)
class RowSummary:
    """Which rows were judged (truth visible and prediction not empty), and what the others are.

    Attributes:
        rows, judged, videos: counts; videos are those with a judged row.
        missed: truth visible, prediction empty. false: truth hidden, prediction not empty. empty: both empty.
        mean_iou: of the judged rows. mean_iou_visible: of all rows with visible truth, a missed object counting 0.
    """

    rows: int
    judged: int
    videos: int
    missed: int
    false: int
    empty: int
    mean_iou: float
    mean_iou_visible: float

    @property
    def coverage(self) -> float:
        """Share of all rows that is judged."""
        return self.judged / self.rows


@dataclass(frozen=True)
class Figure:
    """One number about one score.

    Attributes:
        metric: pearson, spearman, aurc, calibration_error, relative_area or published_ratio.
        scope: "pooled" or "within video"; for the last two the application.
        score: name of the score.
        value, low, high: the number and its interval over videos.
        ahead, ahead_low, ahead_high: how much better than the baseline, paired; above 0 is better for every metric.
        random, oracle: what a random order and the order by truth get on the same rows.
        videos: how many videos the number averages over or pools.
    """

    metric: str
    scope: str
    score: str
    value: float
    low: float
    high: float
    ahead: float
    ahead_low: float
    ahead_high: float
    random: float
    oracle: float
    videos: int


@dataclass(frozen=True)
class Evaluation:
    """Everything `evaluate` found.

    Attributes:
        rows: which rows were judged.
        figures: every number, by metric, then scope, then score.
        curves: per application the replacement curves by score name, "random" and "oracle" among them, each (201,) mean
            IoU at shares 0, .005, ..., 1.
        risks: per score, and for "oracle", the selective risk (1 - IoU) at coverages .005, .01, ..., 1.
        baseline: the score that others are compared with.
        replicates, min_rows: of the bootstrap, and of a video to count within videos.
    """

    rows: RowSummary
    figures: list[Figure]
    curves: dict[str, dict[str, FloatArray]]
    risks: dict[str, FloatArray]
    baseline: str
    replicates: int
    min_rows: int

    def value(self, metric: str, scope: str, score: str) -> Figure:
        """One figure by its names.

        Raises: EvaluationError if it was not worked out.
        """
        for figure in self.figures:
            if (figure.metric, figure.scope, figure.score) == (metric, scope, score):
                return figure
        raise EvaluationError("a figure that was worked out", f"{metric}, {scope}, {score}", "correct the names")


def paper_applications(ious: Mapping[str, ArrayLike], chosen: str = "iou") -> dict[str, Replacement]:
    """The paper's four applications, as far as their columns are given.

    Args:
        ious: (n,) each: `iou_tiny`, `iou_large` (best of three per size), `iou` (the deployed model's best of three),
            `iou_dense_prompt` (its best of three with eight clicks), `iou_unsupervised` (of SAM2's own choice).
        chosen: the column that the truth would replace; name another for propagated masks.
    Returns: model, prompt, task and segmentation, whichever have both columns.
    """
    pairs = {
        "model": ("iou_tiny", "iou_large"),
        "prompt": ("iou", "iou_dense_prompt"),
        "task": ("iou_unsupervised", "iou"),
    }
    columns = {name: np.asarray(values, np.float64) for name, values in ious.items()}
    found = {
        name: Replacement(columns[base], columns[better])
        for name, (base, better) in pairs.items()
        if base in columns and better in columns
    }
    if chosen in columns:
        found["segmentation"] = Replacement(columns[chosen], np.ones_like(columns[chosen]))
    return found


def evaluate(
    truth: Truth,
    scores: Mapping[str, Score],
    applications: Mapping[str, Replacement],
    *,
    baseline: str,
    replicates: int = 1000,
    min_rows: int = 10,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Judge scores on the rows where the truth is visible and the prediction is not empty.

    Args:
        truth: n rows.
        scores: by name; n values each.
        applications: by name; n values each, see `paper_applications`.
        baseline: the score that every other is compared with, on the same draws of videos.
        replicates: draws of videos for 95% intervals; 0 for none.
        min_rows: rows that a video needs to count within videos.
        seed: of the draws.
        progress: told how many draws of how many are done.
    Returns: the evaluation.
    Raises:  EvaluationError for columns of unequal length, values that are not finite on a judged row, no judged row,
             or an unknown baseline.
    """
    ranks_all = [name for name, score in scores.items() if score.uncertainty_n is not None]
    if baseline not in ranks_all:
        raise EvaluationError(f"a baseline out of {', '.join(ranks_all)}", repr(baseline), "name one of the scores")
    iou_n = np.asarray(truth.iou_n, np.float64)
    visible_n, predicted_n = np.asarray(truth.visible_n, bool), np.asarray(truth.predicted_n, bool)
    video_n = np.asarray(truth.video_n)
    for name, column in {"video": video_n, "visible": visible_n, "predicted": predicted_n}.items():
        _need(f"the column {name}", column, len(iou_n))
    keep_n = visible_n & predicted_n
    if not keep_n.any():
        raise EvaluationError(
            "a row with visible truth and a mask", f"none among {len(iou_n)}", "check the truth and the prompts"
        )
    judged_iou_n = _column("true IoU", iou_n, keep_n)
    uncertainty = {
        name: _column(f"the score {name}", score.uncertainty_n, keep_n)
        for name, score in scores.items()
        if score.uncertainty_n is not None
    }
    replaced = {
        name: Replacement(*(_column(f"the application {name}", c, keep_n) for c in (pair.base_n, pair.better_n)))
        for name, pair in applications.items()
    }
    codes_n = np.unique(video_n[keep_n], return_inverse=True)[1].reshape(-1).astype(np.intp)
    videos = int(codes_n.max()) + 1
    work = _Work(judged_iou_n, codes_n, videos, min_rows)
    for name, column in uncertainty.items():
        work.add_quality(name, column, scores[name].predicts_iou)
    curves = {}
    for application, pair in replaced.items():
        oracle = ReplacementCurve(pair, pair.gain_n)
        ranked = {
            name: _column(f"the score {name} for {application}", values, keep_n)
            for name, score in scores.items()
            if (values := score.ranking(application)) is not None
        }
        for name, column in ranked.items():
            work.add_replacement(application, name, RelativeArea(pair, column, oracle))
        curves[application] = _curves(pair, ranked)
    return Evaluation(
        rows=_summary(iou_n, visible_n, predicted_n, videos),
        figures=work.figures(baseline, replicates, seed, progress),
        curves=curves,
        risks={name: _risks(u, judged_iou_n) for name, u in {**uncertainty, "oracle": -judged_iou_n}.items()},
        baseline=baseline,
        replicates=replicates,
        min_rows=min_rows,
    )


@dataclass(frozen=True)
class _Measure:
    metric: str
    scope: str
    score: str
    statistic: Statistic
    random: float
    oracle: float
    videos: int


class _Work:
    """Collects figures as functions of the draw of videos, then works all of them out on the same draws."""

    def __init__(self, iou_n: FloatArray, codes_n: NDArray[np.intp], videos: int, min_rows: int) -> None:
        self._iou_n, self._codes_n, self._videos, self._min_rows = iou_n, codes_n, videos, min_rows
        self._best_aurc = Aurc(-iou_n, 1 - iou_n)(None)
        self._best_within = within_groups(-iou_n, iou_n, codes_n, videos, min_rows)
        mean_loss_v = np.bincount(codes_n, 1 - iou_n, videos) / np.bincount(codes_n, minlength=videos)
        self._random_within = np.where(np.isfinite(self._best_within["aurc"]), mean_loss_v, np.nan)
        self._measures: list[_Measure] = []

    def add_quality(self, name: str, uncertainty_n: FloatArray, predicts_iou: bool) -> None:
        iou_n, loss_n = self._iou_n, 1 - self._iou_n
        spearman, aurc = Spearman(-uncertainty_n, iou_n), Aurc(uncertainty_n, loss_n)
        self._add("pearson", "pooled", name, lambda _, w: pearson(-uncertainty_n, iou_n, w), 0.0, 1.0)
        self._add("spearman", "pooled", name, lambda _, w: spearman(w), 0.0, 1.0)
        self._add("aurc", "pooled", name, lambda _, w: aurc(w), float(loss_n.mean()), self._best_aurc)
        if predicts_iou:
            self._add(
                "calibration_error",
                "pooled",
                name,
                lambda _, w: calibration_error(1 - uncertainty_n, iou_n, CALIBRATION_BINS, w),
                float("nan"),
                0.0,
            )
        within = within_groups(uncertainty_n, iou_n, self._codes_n, self._videos, self._min_rows)
        for metric, values_v in within.items():
            known_v = np.isfinite(values_v)
            random, oracle = 0.0, 1.0
            if metric == "aurc":
                random, oracle = (
                    _mean(v[known_v], known_v[known_v]) for v in (self._random_within, self._best_within["aurc"])
                )
            self._add(metric, "within video", name, _averager(values_v), random, oracle, int(known_v.sum()))

    def add_replacement(self, application: str, name: str, relative: RelativeArea) -> None:
        self._add("relative_area", application, name, lambda _, w: relative(w), 0.0, 1.0)
        self._add(
            "published_ratio", application, name, lambda _, w: relative.published(w), relative.published_random(), 1.0
        )

    def _add(
        self,
        metric: str,
        scope: str,
        score: str,
        statistic: Statistic,
        random: float,
        oracle: float,
        videos: int | None = None,
    ) -> None:
        count = self._videos if videos is None else videos
        self._measures.append(_Measure(metric, scope, score, statistic, random, oracle, count))

    def figures(
        self, baseline: str, replicates: int, seed: int, progress: Callable[[int, int], None] | None
    ) -> list[Figure]:
        ones_v, ones_n = np.ones(self._videos), np.ones(len(self._iou_n))
        values = [m.statistic(ones_v, ones_n) for m in self._measures]
        statistics = [m.statistic for m in self._measures]
        draws = bootstrap(statistics, self._codes_n, self._videos, replicates, seed, progress)
        where = {(m.metric, m.scope, m.score): i for i, m in enumerate(self._measures)}
        figures = []
        for i, m in enumerate(self._measures):
            base = where.get((m.metric, m.scope, baseline))
            ahead, ahead_ends = float("nan"), (float("nan"), float("nan"))
            if base is not None:
                better, worse = (base, i) if m.metric in LOWER_IS_BETTER else (i, base)
                ahead, ahead_ends = values[better] - values[worse], interval(draws[:, better] - draws[:, worse])
            figures.append(
                Figure(
                    m.metric, m.scope, m.score, values[i], *interval(draws[:, i]), ahead, *ahead_ends,
                    m.random, m.oracle, m.videos,
                )
            )  # fmt: skip
        order = {key: i for i, key in enumerate(dict.fromkeys((f.metric, f.scope) for f in figures))}
        return sorted(figures, key=lambda f: order[f.metric, f.scope])


def _averager(values_v: FloatArray) -> Callable[[FloatArray, FloatArray], float]:
    known_v = np.isfinite(values_v)
    return lambda drawn_v, _: _mean(values_v[known_v], drawn_v[known_v])


def _mean(values: FloatArray, weights: Any) -> float:
    total = float(np.sum(weights))
    return float(values @ np.asarray(weights, np.float64)) / total if total else float("nan")


def _need(what: str, column: NDArray[Any], rows: int) -> None:
    if column.shape != (rows,):
        raise EvaluationError(f"{rows} values in {what}", str(column.shape), "give one value per row")


def _column(what: str, values: ArrayLike, keep_n: NDArray[np.bool_]) -> FloatArray:
    column = np.asarray(values, np.float64)
    _need(what, column, len(keep_n))
    kept: FloatArray = column[keep_n]
    odd = int((~np.isfinite(kept)).sum())
    if odd:
        raise EvaluationError(
            f"finite values in {what}", f"{odd} of {len(kept)} judged rows that are not", "score every judged row"
        )
    return kept


def _summary(
    iou_n: FloatArray, visible_n: NDArray[np.bool_], predicted_n: NDArray[np.bool_], videos: int
) -> RowSummary:
    judged_n = visible_n & predicted_n
    return RowSummary(
        rows=len(iou_n),
        judged=int(judged_n.sum()),
        videos=videos,
        missed=int((visible_n & ~predicted_n).sum()),
        false=int((~visible_n & predicted_n).sum()),
        empty=int((~visible_n & ~predicted_n).sum()),
        mean_iou=float(iou_n[judged_n].mean()),
        mean_iou_visible=float(np.where(predicted_n, iou_n, 0)[visible_n].mean()),
    )


def _curves(pair: Replacement, uncertainty: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
    everything = {**uncertainty, "oracle": pair.gain_n, "random": np.zeros(len(pair.gain_n))}
    return {
        name: np.interp(_CURVE_SHARES, *ReplacementCurve(pair, values).points()) for name, values in everything.items()
    }


def _risks(uncertainty_n: FloatArray, iou_n: FloatArray) -> FloatArray:
    ranking = Ranking(uncertainty_n)
    count, loss = np.cumsum(ranking.sums(np.ones(len(iou_n)))), np.cumsum(ranking.sums(1 - iou_n))
    share = _CURVE_SHARES[1:] * count[-1]
    risk: FloatArray = np.interp(share, np.append(0.0, count), np.append(0.0, loss)) / share
    return risk
