"""Calibrates thresholds: the largest whose promise the truth certifies, as a certificate and a policy that names it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pipeline.calibrate_budget import Progress, daily, videos_per_day_of, with_thresholds, within_budget
from pipeline.calibrate_pool import Load, Pool, survey
from pipeline.calibrate_request import Request, refuse_foreign, refuse_promise, refuse_thin
from pipeline.calibrate_rows import CalibrationError, JudgedRows, collect, subset
from pipeline.calibrate_walk import certify_groups, fit_iou_map, losses_of, matches_of
from pipeline.certificate import Certificate, list_certificates, write_certificate
from pipeline.certificate_parts import Group, ReviewLoad, Truth
from pipeline.judged import Source
from pipeline.mix import mix_reference, reference_of
from pipeline.policy import Policy
from pipeline.scratch import scratch_folder
from pipeline.settings import Settings
from pipeline.storage.objects import ObjectStore
from pipeline.sweep_input import find_labels
from pipeline.truth import read_truth
from usam.drift import compare

LEAST_COMPARED = 20
UNLIKE = 0.001
"""P-value at which labelled and other videos are called unlike, of at least so many each."""


@dataclass(frozen=True)
class Calibrated:
    """What came of it.

    Args:
        certificate: as written into the output.
        policy: with its id and thresholds.
        uri: where the certificate lies.
        mapping, certifying: the rows of either kind, for the diagram.
        per_day: videos a day that the load is told for; None: nobody knows.
        load: what people would see of all videos of the output by the policy.
        pool: what was counted without truth.
        notes: what a person should know, one line each.
    """

    certificate: Certificate
    policy: Policy
    uri: str
    mapping: JudgedRows
    certifying: JudgedRows
    per_day: float | None
    load: Load
    pool: Pool
    notes: tuple[str, ...]


def calibrate(
    manifest: str,
    source: Source,
    request: Request,
    settings: Settings,
    *,
    progress: Progress = lambda what, done, total: None,
) -> Calibrated:
    """Find the largest thresholds whose promise the truth certifies, and write their certificate into the output.

    Videos are split by a hash of their ids into those that fit the map from scores to IoU and those that certify. The
    thresholds that are tried come from the scores of the others alone. The walk goes from the strict to the lenient
    ones and stops at the first that fails; groups share 1 - confidence equally.

    Args:    manifest: an output of `masksieve label`, a folder or s3://.
             source: from `open_truth`.
             progress: see `Progress`.
    Raises:  CalibrationError, TruthError, SweepError for what does not fit; StorageError.
    """
    refuse_promise(request, source.kind)
    labels = find_labels(manifest, settings.storage, request.drops)
    if not labels.output:
        raise CalibrationError(f"an output at {manifest}", "labels without commits", "give the --out of a label run")
    policy = request.policy.model_copy(update={"certificate": None})
    told = len(source.names())
    with scratch_folder(settings) as scratch:
        truth = read_truth(source, labels.store, drops=request.drops, scratch_dir=Path(scratch))
        audited = source.kind == "verdicts"
        rows = collect(truth, policy, request.by, lambda done: progress("truth", done, told), audited=audited)
    refuse_foreign(labels.store, request.policy, rows)
    map_share = 0.0 if audited else request.map_share
    mapping_n = rows.mapping(map_share)
    mapping, certifying = subset(rows, mapping_n), subset(rows, ~mapping_n)
    loss_n = losses_of(certifying, request)
    refuse_thin(certifying, loss_n, request, map_share)
    matches = matches_of(certifying, request)
    shaped = with_thresholds(policy, [(match, 1.0) for match in matches[:-1]], 1.0)
    certify_ids = {certifying.video_ids[one] for one in np.unique(certifying.video_n)}
    pool = survey(labels.files, shaped, rows.processes, certify_ids, audited, partial(progress, "pool"))
    heaviest = np.bincount(certifying.video_n, certifying.weight_n).max()
    cap = request.max_rows_per_video or pool.cap() or math.ceil(heaviest - 1e-6)
    groups = certify_groups(certifying, loss_n, request, matches, pool, cap, audited=audited)
    policy = with_thresholds(policy, [(one.match, one.threshold) for one in groups[:-1]], groups[-1].threshold)
    per_day = request.videos_per_day or videos_per_day_of(labels, pool)
    certified = any(one.threshold is not None for one in groups)
    policy, load, fits = within_budget(
        labels, policy, rows.processes, request if certified else None, per_day, pool, progress
    )
    status: Literal["certified", "over_budget", "not_certified"] = "not_certified"
    if certified:
        status = "certified" if fits else "over_budget"
    mix = mix_reference(labels.store, pool.certifying_keys)
    issued, marks = datetime.now(UTC), rows.marks()
    certificate = Certificate.issue(
        status=status, promise=request.promise, confidence=request.confidence, method=request.method,
        estimand=request.estimand,
        max_rows_per_video=cap, start_coverage=request.start_coverage, policy=policy.model_dump(mode="json"),
        groups=groups, processes=rows.processes,
        truth=Truth(
            kind=source.kind, sha256=rows.sha256, videos=len(rows.video_ids), rows=len(rows.video_n),
            attempts=_attempts(labels.store, rows.sha256, marks), marks=marks,
        ),
        iou_map=fit_iou_map(mapping), mix=mix,
        review=ReviewLoad(
            rows_per_day=daily(load.rows, per_day, pool), stretches_per_day=daily(load.stretches, per_day, pool),
            budget_per_day=request.review_budget, budget_unit=request.budget_unit,
        ),
        issued_at=issued, valid_until=issued + timedelta(days=request.valid_days),
        software={name: metadata.version(name) for name in ("masksieve", "numpy", "scipy")},
    )  # fmt: skip
    uri = write_certificate(labels.store, certificate)
    policy = policy.model_copy(update={"certificate": certificate.id})
    notes = (*_unlike(labels.store, mix, pool), *_notes(certificate, request, pool, len(rows.video_ids)))
    return Calibrated(certificate, policy, uri, mapping, certifying, per_day, load, pool, notes)


def _attempts(store: ObjectStore, sha256: str, marks: tuple[str, ...]) -> int:
    """How many certificates of the output saw this truth or some of its videos."""
    seen = (one.truth for one in list_certificates(store))
    return sum(one.sha256 == sha256 or not set(marks).isdisjoint(one.marks) for one in seen)


def _notes(certificate: Certificate, request: Request, pool: Pool, labelled: int) -> tuple[str, ...]:
    """What a person should know beside the figures."""
    notes = []
    if count := certificate.truth.attempts:
        times = "1 earlier attempt" if count == 1 else f"{count} earlier attempts"
        notes.append(f"{times} saw this truth or some of its videos; the best of several promises too much")
    if pool.others:
        notes.append(f"{pool.others:,} labelled videos were made otherwise; for them these thresholds are uncertified")
    for group in certificate.groups:
        name = f"{'all others' if group.match.anything else group.match}: " if len(certificate.groups) > 1 else ""
        if group.threshold is None and group.videos:
            notes.append(f"{name}not certified; {_what_it_takes(group, request, labelled)}")
    if certificate.status != "not_certified" and request.policy.audit_rate == 0:
        notes.append("audit_rate is 0: nobody will see accepted masks, and nothing tells when the promise breaks")
    return tuple(notes)


def _what_it_takes(group: Group, request: Request, labelled: int) -> str:
    """How many more videos, or why no number would do."""
    if group.needs_videos is None:
        observed = "none is accepted" if group.observed is None else f"the risk is {group.observed:.1%}"
        return (
            f"where the walk starts, at {request.start_coverage:.0%} coverage, {observed}, and more videos would not "
            "change that: promise less, start lower (--start-coverage), or get better heads"
        )
    more = math.ceil((group.needs_videos - group.videos) * max(labelled, 1) / max(group.videos, 1))
    return f"about {more:,} more labelled videos would do (now {group.videos:,} certify)"


def _unlike(store: ObjectStore, mix: dict[str, Any] | None, pool: Pool) -> list[str]:
    """Whether the labelled videos look drawn from those of the output: the promise is about videos like them."""
    labelled, others = reference_of(mix), reference_of(mix_reference(store, pool.keys))
    if labelled is None or others is None or min(len(labelled), len(others)) < LEAST_COMPARED:
        return []
    found = compare(labelled, others, level=UNLIKE)
    if not found.changed:
        return []
    return [
        f"the labelled videos are not like the others of the output ({found.further.replace('_', ' ')} of these is "
        f"{found.by:+.1f} standard deviations off, p = {found.p:.3f}); the promise is about videos like them"
    ]
