"""What waits for people in an output: how many stretches of which drop, and why, from the review lists alone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from urllib.parse import unquote

import pyarrow.parquet as pq

from pipeline.errors import StorageError
from pipeline.records import read_metadata
from pipeline.storage.manifest import partition
from pipeline.storage.objects import ObjectStore

THREADS = 8
_REVIEW = re.compile(r"review/drop=(?P<drop>[^/]+)/(?P<video>[0-9a-f]{64})\.parquet")
_COLUMNS = ["reasons", "representative"]


@dataclass
class Waiting:
    """What waits in one drop.

    Args:
        videos: with something to look at; stretches: things to look at, of them `audits` to check an accepted mask.
        rows: frames x objects that are not decided until then.
        reasons: why, by kind, of the stretches' representative frames; one may have several.
        labelled: videos of the drop that have a review list, also an empty one.
    """

    drop: str
    labelled: int = 0
    videos: int = 0
    stretches: int = 0
    audits: int = 0
    rows: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, other: Waiting) -> None:
        """Count another part of the drop in."""
        self.labelled, self.videos = self.labelled + other.labelled, self.videos + other.videos
        self.stretches, self.audits = self.stretches + other.stretches, self.audits + other.audits
        self.rows += other.rows
        self.reasons.update(other.reasons)


def waiting_for_people(store: ObjectStore, drop: str | None = None, *, threads: int = THREADS) -> list[Waiting]:
    """Count what the review lists hold.

    Args:    drop: only this one; None for all.
    Returns: one per drop that has labelled videos, by name.
    Raises:  StorageError if a list cannot be read.
    """
    below = "review/" if drop is None else f"review/{partition(drop)}/"
    keys = [(match["drop"], entry.key) for entry in store.entries(below) if (match := _REVIEW.fullmatch(entry.key))]
    found: dict[str, Waiting] = {}
    with ThreadPoolExecutor(threads, thread_name_prefix="masksieve-review") as pool:
        for one in pool.map(lambda pair: _count(store, unquote(pair[0]), pair[1]), sorted(keys)):
            found.setdefault(one.drop, Waiting(one.drop)).add(one)
    return [found[name] for name in sorted(found)]


def reason_kind(reason: str) -> str:
    """A reason without its figures: "uncertainty 0.31 > 0.24" is of the kind "uncertainty"."""
    return re.split(r" [<>+-]?\d", reason, maxsplit=1)[0].removesuffix(" with")


def _count(store: ObjectStore, drop: str, key: str) -> Waiting:
    try:
        with store.open(key) as file:
            review = pq.ParquetFile(file)
            counts = read_metadata(review.schema_arrow)["counts"]
            if not counts["stretches"]:
                return Waiting(drop, labelled=1)
            reasons = _reasons(review.read(columns=_COLUMNS).to_pylist())
    except StorageError:
        if store.exists(key):
            raise
        return Waiting(drop)  # forgotten since it was listed
    return Waiting(drop, 1, 1, counts["stretches"], counts["audit"], counts["review"], reasons)


def _reasons(rows: Iterable[dict[str, object]]) -> Counter[str]:
    kinds: Counter[str] = Counter()
    for row in rows:
        if row["representative"]:
            texts = row["reasons"]
            kinds.update({reason_kind(str(text)) for text in texts} if isinstance(texts, list) else ())
    return kinds
