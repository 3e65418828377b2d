"""Watches a certificate: does its promise hold of the masks that people audited, and do videos still look alike?

Both tests may be looked at as often as one likes. Whichever says no voids the certificate, with the reason and the
number. Videos enter in the order in which they were committed, each once; what entered stays on record.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow.parquet as pq

from pipeline.audits import Verdicts
from pipeline.certificate import Certificate, list_certificates, read_certificate, void_certificate, void_reason
from pipeline.certificate_parts import ErrorRate, truth_mark
from pipeline.errors import StorageError
from pipeline.ledger import Ledger
from pipeline.mix import reference_of
from pipeline.records import read_metadata
from pipeline.review.as_made import as_made
from pipeline.storage.objects import ObjectStore
from pipeline.watch_record import Bets, Entered, Look, Record, WatchError, read_record, video_mark, write_record
from pipeline.watch_video import WatchedVideo, read_video
from usam.drift import compare, look_level, most_audited

ATTEMPTS = 5
LOOKED_AT = 50
"""Labels that are opened to see which certificate is in use."""
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Options:
    """How a watch is kept.

    Args:
        alpha: chance that the audit is called broken although the promise holds, and the same for the mix.
        batch_videos: videos in one look at the mix.
        patience_days: a video whose audited masks nobody judged for so long goes on as if the rest were right, which
            can delay an alarm and never makes one. Until then it and those after it wait.
    """

    alpha: float = 0.05
    batch_videos: int = 50
    patience_days: float = 14.0


@dataclass(frozen=True)
class Watched:
    """Where a watch stands.

    Args:
        void: why the certificate holds no longer; None while it does.
        e_values: after every judged video; at 1 / alpha the certificate is void.
        waiting: videos with audited masks that nobody judged yet, and those behind them.
        pending: videos that wait for their batch to be full.
        covered: videos that were read now and are decided by the certificate. others: those that are not, or that were
            made otherwise.
        notes: what a person should know, one line each.
    """

    certificate: Certificate
    record: Record
    void: str | None
    e_values: tuple[float, ...]
    waiting: int = 0
    pending: int = 0
    covered: int = 0
    others: int = 0
    notes: tuple[str, ...] = ()

    @property
    def e_value(self) -> float:
        """The latest, 1 at first."""
        return self.e_values[-1] if self.e_values else 1.0


def the_certificate(store: ObjectStore, certificate_id: str | None = None) -> Certificate:
    """The one that is named, or else the one that labels are decided by; without such labels the newest that certifies
    something and is not void, or the newest.

    Raises: CertificateError; WatchError if there is none.
    """
    if certificate_id is not None:
        return read_certificate(store, certificate_id)
    issued = [one for one in reversed(list_certificates(store)) if one.status != "not_certified"]
    if not issued:
        raise WatchError(f"a certificate in {store.url}", "none", "run `masksieve calibrate` first")
    in_use = _in_use(store)
    for one in issued:
        if one.id == in_use:
            return one
    return next((one for one in issued if void_reason(store, one.id) is None), issued[0])


def _in_use(store: ObjectStore) -> str | None:
    """The certificate that most of some labels, spread over all, are decided by; None for none."""
    keys = [key for key in store.list("labels/") if key.endswith(".parquet")]
    named: Counter[str] = Counter()
    for key in keys[:: max(1, len(keys) // LOOKED_AT)]:
        with suppress(StorageError), store.open(key) as file:
            policy = read_metadata(pq.read_schema(file)).get("policy") or {}
            named[policy.get("certificate") or ""] += 1
    del named[""]
    return named.most_common(1)[0][0] if named else None


def watch(
    store: ObjectStore,
    certificate: Certificate,
    verdicts: Verdicts | None,
    options: Options,
    *,
    now: datetime | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Watched:
    """Take in what is new since the last call, and void the certificate if it speaks against it.

    Args:
        verdicts: on audited masks, of all videos or of new ones alone; None: only the mix is looked at.
        now: the time that patience is counted to; None is now.
        progress: called with what is read, how many videos are, and how many there are to read.
    Raises:  WatchError for a watch that began with other options; AuditError; StorageError.
    """
    for _ in range(ATTEMPTS):
        record, version = read_record(store, certificate.id)
        record = record or Record(certificate=certificate.id, alpha=options.alpha, batch_videos=options.batch_videos)
        if (record.alpha, record.batch_videos) != (options.alpha, options.batch_videos):
            expected = f"alpha {record.alpha:g} and batches of {record.batch_videos}, as this watch began"
            got = f"{options.alpha:g} and {options.batch_videos}"
            raise WatchError(expected, got, "go on with these: evidence under other levels cannot be added up")
        step = _Step(certificate, record, verdicts, options, now or datetime.now(UTC))
        if void_reason(store, certificate.id) is None:
            step.take_in(store, progress)
        if step.record == record or write_record(store, step.record, version):
            why = step.against()
            if why is not None:
                void_certificate(store, certificate.id, why)
            watched = step.watched(void_reason(store, certificate.id))
            _draw(store, watched)
            return watched
    raise WatchError("a watch that holds still", f"{ATTEMPTS} rivals in a row", "watch again later")


def picture_key(certificate_id: str) -> str:
    """Where an output keeps the picture of a watch."""
    return f"certificates/{certificate_id}.watch.png"


def _draw(store: ObjectStore, watched: Watched) -> None:
    """Put the picture in place. It shows what the record tells, so the last one to write it may win."""
    from pipeline.render.watch import draw_watch

    certificate, void = watched.certificate, watched.void
    picture = draw_watch(
        watched.e_values, watched.record.looks, alpha=watched.record.alpha, promise=str(certificate.promise),
        title=f"Certificate {certificate.id}",
        verdict=f"void: {void}" if void else f"holds so far, e-value {watched.e_value:.2g}",
    )  # fmt: skip
    store.put_atomic(picture_key(certificate.id), picture)


class _Step:
    """One call: the record and what it becomes."""

    def __init__(
        self, certificate: Certificate, record: Record, verdicts: Verdicts | None, options: Options, now: datetime
    ) -> None:
        self.certificate, self.record, self.verdicts = certificate, record, verdicts
        self._late = now - timedelta(days=options.patience_days)
        promise = certificate.promise
        self._at_most = promise.at_most if isinstance(promise, ErrorRate) else 1 - promise.at_least
        self._reference = reference_of(certificate.mix)
        self._bets: Bets | None = None
        self._batch: list[WatchedVideo] = []
        self._line_stands = verdicts is None
        self._e_values: list[float] = []
        self._waiting = self._covered = self._others = self._audited = self._matched = 0
        for video in record.entered:
            self._bet(video)

    def take_in(self, store: ObjectStore, progress: Progress) -> None:
        """Read the videos that the record does not know to the end, and let them enter in their order."""
        ledger, record = Ledger(store), self.record
        entered = {one.mark for one in record.entered}
        calibrating = set(self.certificate.truth.marks)

        def wanted(video_id: str) -> bool:
            mark = video_mark(video_id)
            more = mark not in record.seen or (record.seen[mark] > 0 and mark not in entered)
            return more and truth_mark(video_id) not in calibrating

        ids = [video_id for video_id in ledger.newest_generations() if wanted(video_id)]
        commits = list(ledger.read_all(ids))
        commits.sort(key=lambda commit: (as_made(ledger, commit).finished_at, commit.video_id))
        for number, commit in enumerate(commits, 1):
            video = read_video(store, commit, self.certificate)
            progress(commit.video_uri, number, len(commits))
            if video is None:
                self._others += 1
                continue
            self._covered += 1
            self._audited += bool(video.audited)
            if video.mark not in self.record.seen:
                self._look_at_mix(video)
            if video.audited and video.mark not in entered:
                self._enter(video)
            if self.against() is not None:
                return

    def against(self) -> str | None:
        """What speaks against the certificate, with its number; None if nothing does."""
        record = self.record
        if self._e_values and self._e_values[-1] >= 1 / record.alpha:
            lost, rows = record.judged
            return (
                f"the audit broke the promise: {lost / rows:.1%} lost ({lost:.4g} of {rows:.4g} masks in "
                f"{len(record.entered)} videos), e-value {self._e_values[-1]:.1f} (limit {1 / record.alpha:g})"
            )
        for number, one in enumerate(record.looks, 1):
            if one.changed:
                return (
                    f"the source mix changed: energy distance {one.distance:.2f} in look {number}, p {one.p:.1g} "
                    f"(limit {one.level:.1g}), most in {one.further} ({one.by:+.1f} standard deviations)"
                )
        return None

    def watched(self, void: str | None) -> Watched:
        """Where the watch stands now."""
        notes = []
        if self._reference is None:
            notes.append("the certificate has no reference of the source mix, so the mix is not watched")
        if not self._covered and self._others and not self.record.entered and not self.record.looks:
            notes.append("no labels are decided by this certificate yet: retune by its policy")
        elif self._covered and not self._audited and not self.record.entered:
            notes.append("no accepted mask was drawn for an audit: set policy.audit_rate")
        if self.verdicts is not None and self._audited and not self._matched and not self.record.entered:
            notes.append(f"none of the {len(self.verdicts):,} verdicts is of an audited mask of this certificate")
        return Watched(
            self.certificate, self.record, void, tuple(self._e_values), self._waiting, len(self._batch), self._covered,
            self._others, tuple(notes),
        )  # fmt: skip

    def _look_at_mix(self, video: WatchedVideo) -> None:
        if self._reference is None:
            self._update(seen=self.record.seen | {video.mark: len(video.audited)})
            return
        self._batch.append(video)
        if len(self._batch) < self.record.batch_videos:
            return
        number = len(self.record.looks) + 1
        features = [one.features for one in self._batch]
        found = compare(self._reference, features, level=look_level(number, self.record.alpha), seed=number)
        newest = Look(videos=len(features), last_at=video.at, **asdict(found))
        seen = self.record.seen | {one.mark: len(one.audited) for one in self._batch}
        self._update(looks=(*self.record.looks, newest), seen=seen)
        self._batch = []

    def _enter(self, video: WatchedVideo) -> None:
        """Its audited masks become one payoff, unless it or one before it waits for verdicts."""
        if self._line_stands or self.verdicts is None:
            self._waiting += 1
            return
        losses = [self.verdicts.loss(row, self.certificate.promise) for row in video.audited]
        unjudged = sum(loss is None for loss in losses)
        self._matched += len(losses) - unjudged
        if unjudged and video.at > self._late:
            self._line_stands = True
            self._waiting += 1
            return
        if self.record.rate is None:
            rate, most = video.audited[0].rate, float(self.certificate.max_rows_per_video)
            if self.certificate.estimand == "rows":
                most = most_audited(most, rate)
            self._update(rate=rate, most_rows=most)
        lost_g, rows_g = ([0.0] * len(self.certificate.groups) for _ in range(2))
        for row, group, loss in zip(video.audited, video.groups, losses, strict=True):
            weight = video.scale * (self.record.rate or row.rate) / row.rate
            rows_g[group] += weight
            lost_g[group] += weight * (loss or 0.0)
        entry = Entered(mark=video.mark, at=video.at, lost_g=tuple(lost_g), rows_g=tuple(rows_g), unjudged=unjudged)
        self._update(entered=(*self.record.entered, entry))
        self._bet(entry)

    def _bet(self, video: Entered) -> None:
        if self._bets is None:
            self._bets = Bets(self.certificate, self._at_most, self.record.most_rows or 1.0)
        self._e_values.append(self._bets.add(video))

    def _update(self, **changes: Any) -> None:
        self.record = self.record.model_copy(update=changes)
