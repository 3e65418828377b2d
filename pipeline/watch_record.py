"""What a watch has seen so far, kept beside its certificate: nothing enters twice, and no evidence is lost."""

from __future__ import annotations

import hashlib
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from pipeline.certificate import Certificate
from pipeline.errors import MasksieveError
from pipeline.storage.objects import ObjectStore
from usam.drift import RiskWatch

VERSION = 1


class WatchError(MasksieveError):
    """A watch that cannot begin or go on."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Entered(_Part):
    """A video whose audited masks were judged.

    Args:
        mark: a short hash of its id, so that the record names no video.
        at: when its facts were committed.
        lost_g, rows_g: losses and audited masks, by group of the certificate.
        unjudged: masks that nobody judged for so long that they were counted as right.
    """

    mark: str
    at: AwareDatetime
    lost_g: tuple[float, ...]
    rows_g: tuple[float, ...]
    unjudged: int = 0


class Look(_Part):
    """A batch of videos that was held against the reference.

    Args:
        distance, p, level, further, by: see `usam.drift.Compared`.
    """

    videos: int
    last_at: AwareDatetime
    distance: float
    p: float
    level: float
    further: str
    by: float

    @property
    def changed(self) -> bool:
        """Whether that is a change."""
        return self.p <= self.level


class Record(_Part):
    """Everything that a watch goes on from.

    Args:
        certificate: id of what is watched.
        alpha: chance of a false alarm, of the audit and of the mix each.
        batch_videos: in one look at the mix.
        rate, most_rows: audit rate that masks are weighted to, and how many of a video count; None before the first.
        entered: judged videos in their order. seen: audited masks of the videos whose mix was looked at, by mark.
    """

    version: Literal[1] = 1
    certificate: str
    alpha: float = Field(gt=0, lt=1)
    batch_videos: int = Field(ge=2)
    rate: float | None = None
    most_rows: float | None = None
    entered: tuple[Entered, ...] = ()
    looks: tuple[Look, ...] = ()
    seen: dict[str, int] = {}

    @property
    def judged(self) -> tuple[float, float]:
        """Losses of the judged masks, and how many there are."""
        return sum(sum(one.lost_g) for one in self.entered), sum(sum(one.rows_g) for one in self.entered)


class Bets:
    """The e-value of a record's videos, and of those that come.

    Of several groups each is watched by itself, and all of them together: the mean of their wealths is an e-value too.
    """

    def __init__(self, certificate: Certificate, at_most: float, most_rows: float) -> None:
        groups = len(certificate.groups)
        self._all = RiskWatch(at_most, most_rows)
        self._each = [RiskWatch(at_most, most_rows) for _ in range(groups)] if groups > 1 else []

    def add(self, video: Entered) -> float:
        """Take in a video. Returns: the e-value."""
        self._all.add(sum(video.lost_g), sum(video.rows_g))
        for watch, lost, rows in zip(self._each, video.lost_g, video.rows_g, strict=False):
            if rows:
                watch.add(lost, rows)
        watches = [self._all, *self._each]
        return sum(watch.value for watch in watches) / len(watches)


def video_mark(video_id: str) -> str:
    """A short hash that stands for a video in a record."""
    return hashlib.sha256(f"watch:{video_id}".encode()).hexdigest()[:16]


def record_key(certificate_id: str) -> str:
    """Where an output keeps the record."""
    return f"certificates/{certificate_id}.watch.json"


def read_record(store: ObjectStore, certificate_id: str) -> tuple[Record | None, str | None]:
    """The record, and its version in the store; None where there is none yet.

    Raises: WatchError if it is damaged: evidence would be lost.
    """
    key = record_key(certificate_id)
    version = store.version(key)
    if version is None:
        return None, None
    try:
        return Record.model_validate_json(store.get(key)), version
    except ValidationError as error:
        got = f"{store.uri(key)}: {error.error_count()} wrong fields"
        raise WatchError("a readable record of the watch", got, "restore the file, or calibrate again") from error


def write_record(store: ObjectStore, record: Record, version: str | None) -> bool:
    """Put the record in place of the version that was read. Returns: False if a rival was first."""
    return store.replace(record_key(record.certificate), record.model_dump_json(indent=1).encode(), version)
