"""Which videos of an output are meant: by drop, by when they were labelled, and by the labels of their objects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import SettingsError
from pipeline.ledger import Commit, Ledger
from pipeline.storage.objects import ObjectStore
from pipeline.suggest import did_you_mean


@dataclass(frozen=True)
class Selection:
    """The videos that all of these are true of; everything where none is given.

    Args:
        drops: first seen in one of them.
        since, until: its newest facts were committed from then on, and before then.
        labels: it has an object with one of these labels, whatever else it has: labels are written by the video.
    """

    drops: tuple[str, ...] = ()
    since: datetime | None = None
    until: datetime | None = None
    labels: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        drops: Sequence[str] | None = None,
        since: str | None = None,
        until: str | None = None,
        labels: Sequence[str] | None = None,
    ) -> Selection:
        """A selection from words.

        Args:   since, until: `2026-11-01` (that day in UTC, whole in both) or `2026-11-01T18:00+01:00`.
        Raises: SettingsError for a word that is no date, or dates the wrong way round.
        """
        first = None if since is None else _moment(since, "since")
        last = None if until is None else _moment(until, "until")
        if last is not None and _is_day(until or ""):
            last = min(last, datetime.max.replace(tzinfo=last.tzinfo) - timedelta(days=1)) + timedelta(days=1)
        if first is not None and last is not None and last <= first:
            raise SettingsError(f"--until after --since {since}", str(until), "swap the two")
        return cls(tuple(sorted(set(drops or ()))), first, last, tuple(sorted(set(labels or ()))))

    def as_json(self) -> dict[str, Any]:
        """What it says, for a record; what it leaves open is left out."""
        said = {
            "drops": [*self.drops],
            "since": None if self.since is None else self.since.isoformat(),
            "until": None if self.until is None else self.until.isoformat(),
            "labels": [*self.labels],
        }
        return {name: value for name, value in said.items() if value}

    def commits(self, ledger: Ledger) -> Iterator[Commit]:
        """The newest commits of the videos, but for the question of labels.

        Raises: SettingsError for a drop that no video was seen in; StorageError if a commit is damaged.
        """
        seen: set[str] = set()
        for commit in ledger.read_all():
            seen.add(commit.first_seen)
            at = commit.finished_at
            early = self.since is not None and at < self.since
            late = self.until is not None and at >= self.until
            if not early and not late and (not self.drops or commit.first_seen in self.drops):
                yield commit
        for drop in self.drops:
            if drop not in seen:
                step = did_you_mean(drop, seen) if seen else "nothing is committed there"
                raise SettingsError(f"a drop that {ledger.store.url} knows", drop, step)

    def holds_label(self, store: ObjectStore, commit: Commit) -> bool:
        """Whether the facts have an object with one of the labels; true where no label is asked for.

        Raises: StorageError if the facts cannot be read.
        """
        if not self.labels:
            return True
        with store.open(commit.file("masks").key) as source:
            file = pq.ParquetFile(source)
            wanted = pa.array(self.labels)
            for group in range(file.num_row_groups):
                if pc.any(pc.is_in(file.read_row_group(group, columns=["label"])["label"], value_set=wanted)).as_py():
                    return True
        return False


def _is_day(text: str) -> bool:
    return "T" not in text and ":" not in text


def _moment(text: str, what: str) -> datetime:
    """A point in time; one without a zone is UTC."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        step = "write it like 2026-11-01 or 2026-11-01T18:00+01:00"
        raise SettingsError(f"--{what} DATE", repr(text), step) from None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)
