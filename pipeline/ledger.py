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
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.errors import ForgottenError, StorageError
from pipeline.records import SCHEMA_VERSION
from pipeline.storage.manifest import FileRecord, checked_video_id
from pipeline.storage.objects import ObjectStore

logger = logging.getLogger(__name__)

_TOLD: set[str] = set()  # stores that this process has warned of
_COMMIT_KEY = re.compile(r"commits/[0-9a-f]{64}/(\d{6,})\.json")


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


def commit_key(video_id: str, generation: int) -> str:
    """Where a commit lies."""
    return f"commits/{checked_video_id(video_id)}/{generation:06d}.json"


def forgotten_key(video_id: str) -> str:
    """Where it is written that a video was removed on request and may not come back."""
    return f"forgotten/{checked_video_id(video_id)}.json"


class Ledger:
    """Reads and writes the commits of one store.

    Args:
        store: where the facts are.
        sql_path: SQLite file for a store without conditional writes; None for $MASKSIEVE_LEDGER, else
            ~/.local/state/masksieve/commits.sqlite. Writers that may race must share it.
    """

    def __init__(self, store: ObjectStore, sql_path: Path | None = None) -> None:
        self.store = store
        default = os.environ.get("MASKSIEVE_LEDGER") or "~/.local/state/masksieve/commits.sqlite"
        self.sql_path = Path(sql_path or default).expanduser()

    def generations(self, video_id: str) -> list[int]:
        """Generations that are committed, ascending."""
        listed = self.store.list(f"commits/{checked_video_id(video_id)}/")
        numbers = {int(match[1]) for key in listed if (match := _COMMIT_KEY.fullmatch(key))}
        return sorted(numbers | self._reconciled(video_id, numbers))

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
    ) -> Commit:
        """Make facts true as generation `parent + 1`.

        Args:    parent: the newest generation when the work began (0: none); work begun on an older one is refused.
                 files: records of what was written; `masks` among them.
        Returns: the commit; the one that is there, if a rival committed the very same work.
        Raises:  CommitConflict if the generation is taken by other work; ForgottenError.
        """
        self.refuse_forgotten(video_id)
        before = self.read(video_id, parent) if parent else None
        commit = Commit(
            video_id=video_id,
            generation=parent + 1,
            parent=parent,
            work_key=work_key,
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
        )
        if self._publish(commit):
            return commit
        newest = self.newest(video_id)
        if newest is not None and newest.work_key == work_key:
            return newest
        taken = "nothing" if newest is None else f"generation {newest.generation} of run {newest.run_id}"
        raise CommitConflict(f"generation {commit.generation} to be free", taken, "run again on top of it")

    def _publish(self, commit: Commit) -> bool:
        body = commit.model_dump_json(indent=1).encode()
        key = commit_key(commit.video_id, commit.generation)
        if self.store.probe_conditional_put():
            return self.store.put_if_absent(key, body)
        if self.store.identity not in _TOLD:
            logger.warning(
                "%s has no conditional writes: commits go through %s, which all writers must share",
                self.store.url,
                self.sql_path,
            )
            _TOLD.add(self.store.identity)
        if commit.generation in self.generations(commit.video_id):  # perhaps of a writer with another SQL file
            return False
        row = (self.store.identity, commit.video_id, commit.generation, body)
        with self._sql(create=True) as database:
            assert database is not None
            try:
                with database:
                    database.execute("INSERT INTO commits VALUES (?, ?, ?, ?)", row)
            except sqlite3.IntegrityError:
                return False
        self.store.put_atomic(key, body)
        return True

    def _reconciled(self, video_id: str, listed: set[int]) -> set[int]:
        """Committed by SQL and without their JSON yet: a writer ended in between. Their JSON is written now.

        Rows whose files are gone from the store (it was emptied) are removed.
        """
        found: set[int] = set()
        where = (self.store.identity, video_id)
        with self._sql() as database:
            if database is None:
                return found
            query = "SELECT generation, body FROM commits WHERE store = ? AND video_id = ?"
            for generation, body in database.execute(query, where).fetchall():
                if generation in listed:
                    continue
                if all(self.store.exists(record.key) for record in Commit.model_validate_json(body).files):
                    self.store.put_atomic(commit_key(video_id, generation), body)
                    found.add(generation)
                    continue
                with database:
                    query = "DELETE FROM commits WHERE store = ? AND video_id = ? AND generation = ?"
                    database.execute(query, (*where, generation))
        return found

    @contextmanager
    def _sql(self, create: bool = False) -> Iterator[sqlite3.Connection | None]:
        """The SQLite database; None if there is none to read, or the store needs none."""
        local = self.store.path("commits") is not None
        if not create and (local or not self.sql_path.is_file()):
            yield None
            return
        try:
            self.sql_path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self.sql_path, timeout=30)) as database:
                database.execute(
                    "CREATE TABLE IF NOT EXISTS commits (store TEXT, video_id TEXT, generation INTEGER, body BLOB,"
                    " PRIMARY KEY (store, video_id, generation))"
                )
                yield database
        except (sqlite3.Error, OSError) as error:
            step = "set MASKSIEVE_LEDGER to a file that can be written"
            raise StorageError(f"a commit ledger at {self.sql_path}", str(error), step) from error
