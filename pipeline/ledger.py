"""Commits: one small JSON per generation makes the facts of a video true, and only one writer can make it.

`commits/{video_id}/{generation:06d}.json` is written with `If-None-Match: *`. On a store that ignores the condition a
SQL unique key takes its place, and the JSON is its copy for readers.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import socket
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.errors import ForgottenError, StorageError
from pipeline.ledger_sql import SqlLedger
from pipeline.records import SCHEMA_VERSION
from pipeline.storage.manifest import FileRecord, checked_video_id
from pipeline.storage.objects import ObjectStore

logger = logging.getLogger(__name__)

_TOLD: set[str] = set()  # stores that this process has warned of
_COMMIT_KEY = re.compile(r"commits/([0-9a-f]{64})/(\d{6,})\.json")
READERS = 16


class CommitConflict(StorageError):
    """Another writer committed first; what this one wrote stays unseen."""


class Commit(BaseModel):
    """One generation of a video's facts.

    Args:
        parent: the generation before, 0 for the first.
        work_key: what the facts were made from, see `work_key`.
        drop: the drop of this run; `first_seen` is the drop under which readers find the video, for good.
        files: layers with keys, rows and checksums; `rows` those of `masks`.
        run_id, attempt, started_at, finished_at, host: of the run; they are nowhere else.
        corrects: the generation that people's answers corrected, by way of all corrections since; None without any.
        answers: ids of all answers that the facts rest on, sorted.
        base_work_key: the work key of the same facts without the answers: who labels the video finds this work done.
    """

    model_config = ConfigDict(frozen=True)

    schema_version: str = SCHEMA_VERSION
    video_id: str
    generation: int
    parent: int
    work_key: str
    video_uri: str
    drop: str
    first_seen: str
    files: tuple[FileRecord, ...]
    rows: int
    run_id: str
    attempt: int
    started_at: datetime
    finished_at: datetime
    host: str
    corrects: int | None = None
    answers: tuple[str, ...] = ()
    base_work_key: str | None = None

    @property
    def label_key(self) -> str:
        """The work key by which `label` knows the facts: that of what people's answers were laid over."""
        return self.base_work_key or self.work_key

    def body(self) -> bytes:
        """The commit as JSON. What it says of answers is left out where there are none, as in earlier releases."""
        unset = {name for name in ("corrects", "answers", "base_work_key") if not getattr(self, name)}
        return self.model_dump_json(indent=1, exclude=unset).encode()

    def file(self, layer: str) -> FileRecord:
        """The record of a layer. Raises StorageError if the generation has none."""
        for record in self.files:
            if record.layer == layer:
                return record
        layers = [record.layer for record in self.files]
        raise StorageError(f"a layer {layer!r} in generation {self.generation}", f"{layers}", "label the video again")


def work_key(
    video_id: str, prompts_sha256: str, model_sha256: str, heads_sha256: str | None, config: Mapping[str, Any]
) -> str:
    """Hash of everything that the facts depend on: equal keys, equal work.

    Args:    heads_sha256: None for a model without heads.
             config: the decoding and propagation settings that change facts, JSON values. Not the policy.
    """
    parts = [SCHEMA_VERSION, video_id, prompts_sha256, model_sha256, heads_sha256, dict(config)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def corrected_key(base_work_key: str, answers: Collection[str]) -> str:
    """The work key of facts that rest on answers as well; without answers, that of the facts alone."""
    if not answers:
        return base_work_key
    return hashlib.sha256(json.dumps(["answers", base_work_key, sorted(answers)]).encode()).hexdigest()


def commit_key(video_id: str, generation: int) -> str:
    """Where a commit lies."""
    return f"commits/{checked_video_id(video_id)}/{generation:06d}.json"


def commit_of(key: str) -> tuple[str, int] | None:
    """video_id and generation of the commit at a key; None for any other key."""
    match = _COMMIT_KEY.fullmatch(key)
    return None if match is None else (match[1], int(match[2]))


def forgotten_key(video_id: str) -> str:
    """Where it is written that a video was removed on request and may not come back."""
    return f"forgotten/{checked_video_id(video_id)}.json"


class Ledger:
    """Reads and writes the commits of one store.

    Args:
        store: where the facts are.
        sql: for a store without conditional writes: a SQLite file or `postgresql://...`; None for $MASKSIEVE_LEDGER,
            else ~/.local/state/masksieve/commits.sqlite. Writers that may race must share it.
    """

    def __init__(self, store: ObjectStore, sql: Path | str | None = None) -> None:
        self.store = store
        self._sql_place = sql or os.environ.get("MASKSIEVE_LEDGER") or "~/.local/state/masksieve/commits.sqlite"

    @cached_property
    def sql(self) -> SqlLedger:
        """What takes the place of conditional writes."""
        return SqlLedger(self._sql_place, self.store.patience)

    def generations(self, video_id: str) -> list[int]:
        """Generations that are committed, ascending."""
        return sorted(self._listed(f"commits/{checked_video_id(video_id)}/", video_id).get(video_id, ()))

    def newest_generations(self) -> dict[str, int]:
        """The highest generation of every video that was ever committed, from one listing."""
        return {video_id: max(numbers) for video_id, numbers in self._listed("commits/").items()}

    def read_all(self, video_ids: Collection[str] | None = None) -> Iterator[Commit]:
        """The newest commit of each video, in no order, read side by side.

        Args:   video_ids: None for all; one that was never committed gives nothing.
        Raises: StorageError if one is damaged.
        """
        newest = self.newest_generations() if video_ids is None else dict.fromkeys(video_ids, 0)

        def read(one: tuple[str, int]) -> Commit | None:
            video_id, generation = one
            if not generation:
                return self.newest(video_id)
            try:
                return self.read(video_id, generation)
            except StorageError:
                if self.store.exists(commit_key(video_id, generation)):
                    raise
                return None  # removed since it was listed

        left = iter(newest.items())
        with ThreadPoolExecutor(READERS) as pool:
            while some := list(islice(left, READERS * 16)):
                yield from (commit for commit in pool.map(read, some) if commit is not None)

    def remove(self, video_id: str) -> None:
        """Remove all commits of a video, the newest last: a reader sees the newest or none. The facts stay."""
        if self._uses_sql:
            self.sql.delete(self.store.identity, checked_video_id(video_id))  # first: a row would write its JSON anew
        for key in sorted(self.store.list(f"commits/{checked_video_id(video_id)}/")):
            self.store.delete(key)

    def sql_rows(self, video_id: str) -> str | None:
        """The database that has rows of a video; None if there is none."""
        if self._uses_sql and self.sql.rows(self.store.identity, checked_video_id(video_id)):
            return self.sql.where
        return None

    def read(self, video_id: str, generation: int) -> Commit:
        """One commit. Raises StorageError if it is missing or damaged."""
        key = commit_key(video_id, generation)
        try:
            return Commit.model_validate_json(self.store.get(key))
        except ValidationError as error:
            got = f"{self.store.uri(key)}: {error.error_count()} wrong fields"
            raise StorageError("a readable commit", got, "restore the file or remove it") from error

    def newest(self, video_id: str) -> Commit | None:
        """The highest generation, or None if the video was never committed."""
        generations = self.generations(video_id)
        return self.read(video_id, generations[-1]) if generations else None

    def newest_generation(self, video_id: str) -> int:
        """The number of the highest generation, 0 if there is none."""
        return max(self.generations(video_id), default=0)

    def refuse_forgotten(self, video_id: str) -> None:
        """Raises ForgottenError if the video was removed on request."""
        if self.store.exists(forgotten_key(video_id)):
            got = f"{video_id[:12]}, which was forgotten on request"
            raise ForgottenError("a video that may be labelled", got, "remove it from the drop")

    def commit(
        self,
        video_id: str,
        *,
        parent: int,
        work_key: str,
        video_uri: str,
        drop: str,
        files: Sequence[FileRecord],
        run_id: str,
        attempt: int,
        started_at: datetime,
        corrects: int | None = None,
        answers: Collection[str] = (),
    ) -> Commit:
        """Make facts true as generation `parent + 1`.

        Args:    parent: the newest generation when the work began (0: none); work begun on an older one is refused.
                 work_key: of the facts without answers.
                 files: records of what was written; `masks` among them.
                 corrects, answers: of facts that rest on answers, see `Commit`.
        Returns: the commit; the one that is there, if a rival committed the very same work.
        Raises:  CommitConflict if the generation is taken by other work; ForgottenError.
        """
        self.refuse_forgotten(video_id)
        before = self.read(video_id, parent) if parent else None
        own_key = corrected_key(work_key, answers)
        commit = Commit(
            video_id=video_id,
            generation=parent + 1,
            parent=parent,
            work_key=own_key,
            video_uri=video_uri,
            drop=drop,
            first_seen=before.first_seen if before else drop,
            files=tuple(files),
            rows=next((record.rows for record in files if record.layer == "masks"), 0),
            run_id=run_id,
            attempt=attempt,
            started_at=started_at,
            finished_at=datetime.now(UTC),
            host=socket.gethostname(),
            corrects=corrects,
            answers=tuple(sorted(answers)),
            base_work_key=work_key if answers else None,
        )
        if self._publish(commit):
            self._take_back_forgotten(video_id)
            return commit
        newest = self.newest(video_id)
        if newest is not None and newest.work_key == own_key:
            return newest
        taken = "nothing" if newest is None else f"generation {newest.generation} of run {newest.run_id}"
        raise CommitConflict(f"generation {commit.generation} to be free", taken, "run again on top of it")

    def _take_back_forgotten(self, video_id: str) -> None:
        """Remove what was just committed if the video was forgotten meanwhile: either `forget` saw it, or we see that.

        Raises: ForgottenError.
        """
        try:
            self.refuse_forgotten(video_id)
        except ForgottenError:
            self.remove(video_id)
            raise

    def _publish(self, commit: Commit) -> bool:
        body = commit.body()
        key = commit_key(commit.video_id, commit.generation)
        if self.store.probe_conditional_put():
            return self.store.put_if_absent(key, body)
        if self.store.identity not in _TOLD:
            logger.warning(
                "%s has no conditional writes: commits go through %s, which all writers must share",
                self.store.url,
                self.sql.where,
            )
            _TOLD.add(self.store.identity)
        if commit.generation in self.generations(commit.video_id):  # perhaps of a writer with another SQL file
            return False
        if not self.sql.insert(self.store.identity, commit.video_id, commit.generation, body):
            return False
        self.store.put_atomic(key, body)
        return True

    @property
    def _uses_sql(self) -> bool:
        """Whether there may be rows of this store; a folder never has any."""
        return self.store.path("commits") is None and not self.store.known_conditional and self.sql.there

    def _listed(self, prefix: str, video_id: str | None = None) -> dict[str, set[int]]:
        """The generations below a prefix of all videos, or of one, those that SQL alone knows among them."""
        found: dict[str, set[int]] = {}
        for key in self.store.list(prefix):
            if (named := commit_of(key)) is not None:
                found.setdefault(named[0], set()).add(named[1])
        if not self._uses_sql:
            return found
        if video_id is not None:
            rows = {video_id: {number for number, _ in self.sql.rows(self.store.identity, video_id)}}
        else:
            rows = self.sql.generations(self.store.identity)
        for video, numbers in rows.items():
            for number in sorted(numbers - found.get(video, set())):
                if self._copied(video, number):
                    found.setdefault(video, set()).add(number)
        return found

    def _copied(self, video_id: str, generation: int) -> bool:
        """Committed by SQL and without its JSON yet: a writer ended in between. The JSON is written now.

        A row whose files are gone from the store (it was emptied) is removed.
        """
        for _, body in self.sql.rows(self.store.identity, video_id, generation):
            if all(self.store.exists(record.key) for record in Commit.model_validate_json(body).files):
                self.store.put_atomic(commit_key(video_id, generation), body)
                return True
            self.sql.delete(self.store.identity, video_id, generation)
        return False
