"""What is asked of a calibration, and what is refused before anything is certified."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from pipeline.calibrate_rows import CalibrationError, JudgedRows
from pipeline.certificate import CertificateError, difference, read_certificate
from pipeline.certificate_parts import ErrorRate, MeanIou
from pipeline.columns import Floats
from pipeline.policy import Policy
from pipeline.storage.objects import ObjectStore
from usam.certify import Method, fewest_videos


@dataclass(frozen=True)
class Request:
    """What is to be promised, and how.

    Args:
        promise: of the accepted predictions.
        policy: whose rules decide; its thresholds are replaced, its groups kept unless `by` makes others.
        confidence: probability over draws of labelled videos that all groups keep the promise, (0, 1).
        estimand: every accepted row counts alike, or every video.
        by: source, label, model: thresholds of their own for each; those with fewer than `min_videos` share one.
        min_videos: certifying videos that a group needs.
        review_budget: what people can look at in a day; None: no limit.
        budget_unit: of the budget.
        videos_per_day: for the load; None: as many as were labelled a day so far.
        valid_days: after so many the certificate ends.
        map_share: share of the labelled videos that fit the map from scores to IoU and certify nothing, [0, 1).
        method: the test of a threshold, see `usam.certify.certify`.
        start_coverage: coverage at which the walk over thresholds begins, chosen before one looks at the truth, (0, 1].
        max_rows_per_video: more rows of one video count as this many; None: the 99th percentile in the pool.
        drops: only videos first seen in these, all if empty; of others nothing is certified, nor accepted.
    """

    promise: ErrorRate | MeanIou
    policy: Policy = field(default_factory=Policy)
    confidence: float = 0.9
    estimand: Literal["rows", "videos"] = "rows"
    by: tuple[str, ...] = ()
    min_videos: int = 100
    review_budget: float | None = None
    budget_unit: Literal["rows", "stretches"] = "stretches"
    videos_per_day: float | None = None
    valid_days: float = 90
    map_share: float = 0.1
    method: Method = "clustered"
    start_coverage: float = 0.2
    max_rows_per_video: int | None = None
    drops: tuple[str, ...] = ()

    @property
    def at_most(self) -> float:
        """The risk that is promised."""
        return self.promise.at_most if isinstance(self.promise, ErrorRate) else 1 - self.promise.at_least


def refuse_promise(request: Request, kind: str) -> None:
    """Raises CalibrationError for a promise that this kind of truth cannot test."""
    if kind == "verdicts" and isinstance(request.promise, MeanIou):
        step = "promise --bad-iou and --at-most; reviewers decide what is bad"
        raise CalibrationError("truth that tells IoU for --mean-iou", "verdicts", step)
    unknown = sorted(set(request.by) - {"source", "label", "model"})
    if unknown:
        raise CalibrationError("--by out of source, label, model", ", ".join(unknown), "correct it")
    if request.review_budget is not None and request.review_budget < 0:
        raise CalibrationError("a review budget of at least 0", f"{request.review_budget:g}", "correct it")


def refuse_foreign(store: ObjectStore, policy: Policy, rows: JudgedRows) -> None:
    """Raises CalibrationError if the policy to start from rests on evidence about another process."""
    if policy.certificate is None:
        return
    step = "take `certificate` out of the policy, or calibrate masks of that process"
    try:
        named = read_certificate(store, policy.certificate)
    except CertificateError as error:
        raise CalibrationError(error.expected, error.got, step) from error
    for process in rows.processes:
        if (unlike := difference(process, named.processes)) is not None:
            got = f"certificate {named.id[:12]}, which is for {unlike}"
            raise CalibrationError("a policy whose certificate is for these masks", got, step)


def refuse_thin(rows: JudgedRows, loss_n: Floats, request: Request, map_share: float) -> None:
    """Raises CalibrationError for truth from which nothing can be certified, whatever the threshold."""
    delta = 1 - request.confidence
    videos, least = len(np.unique(rows.video_n)), fewest_videos(request.at_most, delta)
    total = math.ceil(least / (1 - map_share))
    if videos < least:
        expected = f"at least {total} labelled videos for {request.promise} at {request.confidence:.0%} confidence"
        mapping = f", {len(rows.video_ids) - videos} of which draw the map" if map_share else ""
        got = f"{len(rows.video_ids)}{mapping}"
        raise CalibrationError(expected, got, "label more, or promise less; about ten times as many do in practice")
    if len(set(loss_n.tolist())) < 2:
        rows_n, kind = len(loss_n), "right" if loss_n[0] == 0 else "wrong"
        if isinstance(request.promise, ErrorRate):
            word = "accepted" if kind == "right" else "rejected"
            got = f"{rows_n:,} that are all {kind} at IoU {request.promise.bad_iou:g} (all {word}, for verdicts)"
        else:
            got = f"{rows_n:,} of IoU {1 - loss_n[0]:g} each"
        raise CalibrationError("right and wrong masks in the truth", got, "check the truth, or another --bad-iou")
    candidates_n = ~np.isnan(rows.score_n)
    if not candidates_n.any():
        got = f"none of {len(candidates_n):,}: other rules of the policy stop every one, or none has a score"
        raise CalibrationError("masks that a threshold may accept", got, "loosen the policy's rules")
    scores = rows.score_n[candidates_n]
    if scores.min() == scores.max():
        got = f"{scores.min():g} for all {len(scores):,}, so that a threshold accepts all or none"
        raise CalibrationError("uncertainties that differ", got, "check the heads of the model")
