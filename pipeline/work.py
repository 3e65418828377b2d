"""What became of every listed video: its attempts, done or quarantined, as small objects whose names alone say it.

`work/drop=D/PLAN_KEY/` holds `attempt-ID.STATE.json`, `done-VIDEO_ID.json`, `quarantined.json` or `forgotten.json`. One
listing tells a planner all it needs; the bodies are for people. None of this is the truth, the commit is: a lost record
costs a second look at a video and nothing else, and a record without its commit counts for nothing.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import unquote

from pipeline.errors import DiskSpaceError, ForgottenError, MasksieveError, StorageError, UnavailableError
from pipeline.report import VideoReport
from pipeline.settings import DropSettings
from pipeline.storage.download import Entry
from pipeline.storage.manifest import FULL, partition
from pipeline.storage.objects import ObjectStore
from pipeline.storage.secrets import masked

log = logging.getLogger(__name__)

State = Literal["running", "failed", "lost", "cancelled", "unavailable"]
COUNTED = frozenset(("failed", "lost"))
"""Attempts of these states count towards quarantine; a cancelled one, or one whose store or disk failed, does not."""
FORGOTTEN = "forgotten on request"
NO_REASON = "no reason on record"
BEATS_PER_LEASE = 4
_KEY = re.compile(
    r"work/drop=(?P<drop>[^/]+)/(?P<plan>[0-9a-f]{64})/"
    r"(?:attempt-(?P<attempt>[0-9a-f-]+)\.(?P<state>running|failed|lost|cancelled|unavailable)"
    r"|done-(?P<video>[0-9a-f]{64})|(?P<aside>quarantined|forgotten))\.json"
)


@dataclass(frozen=True, slots=True)
class Item:
    """One video that a plan asks for; plain strings, so that it can be a parameter of a flow run.

    Args:
        video, prompts: local paths or s3:// URLs; prompts None where none were found.
        drop: name of its drop.
        plan_key: see `plan_key`.
    """

    video: str
    prompts: str | None
    drop: str
    plan_key: str


def plan_key(video: str, entry: Entry, prompts: str | None, prompts_entry: Entry | None, settings_digest: str) -> str:
    """Names a piece of work by what a listing shows of it: another version of the bytes, the prompts or the settings is
    other work. Where a store names the version, its time says nothing more: a `chmod` changes that too.

    Args:
        video, prompts: where they lie.
        entry, prompts_entry: what the listing says of them.
        settings_digest: of all settings, models and heads that change facts.
    """
    facts = [video, entry.size_bytes, entry.tag or entry.modified]
    if prompts_entry is not None:
        facts += [prompts, prompts_entry.size_bytes, prompts_entry.tag or prompts_entry.modified]
    return hashlib.sha256(json.dumps([*facts, settings_digest]).encode()).hexdigest()


@dataclass(slots=True)
class Standing:
    """Where one piece of work stands, by the names and times of its records.

    Args:
        done: video_id, once it is committed and derived.
        quarantined: set aside until `WorkLog.retry`; forgotten: set aside because its video was removed on request.
        live: attempts under way, with the time of their last sign of life; lapsed: those whose lease ran out.
        counted: failed and lost attempts so far.
        since: when its newest record was written, Unix time in s.
    """

    drop: str
    done: str | None = None
    quarantined: bool = False
    forgotten: bool = False
    live: dict[str, float] = field(default_factory=dict)
    lapsed: list[str] = field(default_factory=list)
    states: dict[str, State] = field(default_factory=dict)
    since: float = 0.0

    @property
    def counted(self) -> int:
        return len(self.lapsed) + sum(state in COUNTED for state in self.states.values())

    @property
    def wanted(self) -> bool:
        """Whether somebody should take it up."""
        return self.done is None and not (self.quarantined or self.forgotten or self.live)


class WorkLog:
    """Reads and writes the records of one output.

    Args:
        store: the output.
        settings: lease and number of attempts.

    Attributes:
        set_aside: plan keys of what this very object put into quarantine.
    """

    def __init__(self, store: ObjectStore, settings: DropSettings) -> None:
        self.store, self.settings = store, settings
        self.set_aside: set[str] = set()
        self._unrecorded: list[tuple[Attempt, BaseException | None]] = []
        self._ahead_seconds: float | None = None

    def standings(self, drop: str | None = None) -> dict[str, Standing]:
        """Every piece of work on record by its plan key, or of one drop, from one listing."""
        return self._read(self.store.entries("work/" if drop is None else f"work/{partition(drop)}/"))

    def standing(self, item: Item) -> Standing:
        """Of one piece of work; an empty one if nobody began it."""
        found = self._read(self.store.entries(self._folder(item.drop, item.plan_key)))
        return found.get(item.plan_key, Standing(item.drop))

    def begin(self, item: Item, run_id: str) -> Attempt | None:
        """Take up a piece of work, unless it is done, set aside, or under way elsewhere.

        It is not done if what it is said to have made is neither committed nor forgotten.
        Attempts whose lease ran out are recorded as lost first; if that makes too many, the work goes to quarantine.

        Returns: the attempt, for a `with` block; None if there is nothing to do (see `standing`).
        """
        self.catch_up()
        standing = self.standing(item)
        for attempt in standing.lapsed:
            self._settle_lost(item, attempt)
        if standing.done is not None and not self._is_known(standing.done):
            log.warning("the commit of %s is gone: labelling it anew", item.video)
            standing.done = None
        if not standing.wanted:
            return None
        self._prune(item, standing)
        if standing.counted >= self.settings.max_attempts:
            self.quarantine(item)
            return None
        return Attempt(self, item, run_id, standing.counted + 1)

    def catch_up(self) -> None:
        """Record how attempts ended whose outcome could not be written at the time; otherwise they would count as lost.

        Raises: StorageError if the store still takes nothing.
        """
        while self._unrecorded:
            attempt, error = self._unrecorded[0]
            attempt.record(error)
            self._unrecorded.pop(0)

    def attempts(self, drop: str, plan_key: str) -> list[dict[str, Any]]:
        """The bodies of all attempts on record, oldest first, each with its `state`."""
        found = []
        for key in self.store.list(self._folder(drop, plan_key)):
            match = _KEY.fullmatch(key)
            if match and match["attempt"] and (body := self._body(key)) is not None:
                found.append({**body, "state": match["state"]})
        return found

    def reason(self, item: Item) -> str:
        """Why a piece of work is in quarantine."""
        body = self._body(f"{self._folder(item.drop, item.plan_key)}quarantined.json") or {}
        return str(body.get("error", NO_REASON))

    def quarantine(self, item: Item) -> None:
        """Set a piece of work aside with the errors of its attempts."""
        attempts = self.attempts(item.drop, item.plan_key)
        error = next((one["error"] for one in reversed(attempts) if one.get("error")), NO_REASON)
        body = {**asdict(item), "error": error, "attempts": attempts, "at": _now()}
        self.put(f"{self._folder(item.drop, item.plan_key)}quarantined.json", body)
        self.set_aside.add(item.plan_key)
        log.warning("quarantined %s after %d attempts: %s", item.video, len(attempts), error)

    def forget(self, item: Item) -> None:
        """Set aside a video that was removed on request; what the records say of it goes: its name, its errors."""
        folder = self._folder(item.drop, item.plan_key)
        body = {"drop": item.drop, "plan_key": item.plan_key, "error": FORGOTTEN, "attempts": [], "at": _now()}
        self.put(f"{folder}forgotten.json", body)
        for key in self.store.list(folder):
            if not key.endswith("/forgotten.json"):
                self.store.delete(key)

    def retry(self, drop: str, plan_key: str) -> None:
        """Forget all attempts at a piece of work and its quarantine, so that the next plan takes it up afresh."""
        folder = self._folder(drop, plan_key)
        keys = [key for key in self.store.list(folder) if not key.startswith(f"{folder}done-")]
        aside = (f"{folder}quarantined.json", f"{folder}forgotten.json")
        for key in sorted(keys, key=lambda key: key in aside):  # last: until then it stays aside
            self.store.delete(key)

    def put(self, key: str, body: dict[str, Any]) -> None:
        """Write one record."""
        self.store.put_atomic(key, json.dumps(body, indent=1).encode())

    def attempt_key(self, item: Item, attempt: str, state: State) -> str:
        """Where an attempt in this state is recorded."""
        return f"{self._folder(item.drop, item.plan_key)}attempt-{attempt}.{state}.json"

    def done_key(self, item: Item, video_id: str) -> str:
        """Where it is recorded that the work is done."""
        return f"{self._folder(item.drop, item.plan_key)}done-{video_id}.json"

    def _prune(self, item: Item, standing: Standing) -> None:
        """Of attempts that do not count keep the last: a store that is away for days would leave thousands."""
        for attempt in sorted(one for one, state in standing.states.items() if state not in COUNTED)[:-1]:
            self.store.delete(self.attempt_key(item, attempt, standing.states.pop(attempt)))

    def _is_known(self, video_id: str) -> bool:
        """Whether a video is committed, or was and is forgotten."""
        return bool(self.store.list(f"commits/{video_id}/")) or self.store.exists(f"forgotten/{video_id}.json")

    def _settle_lost(self, item: Item, attempt: str) -> None:
        running = self.attempt_key(item, attempt, "running")
        body = self._body(running) or {"attempt": attempt}
        stage = f" while at {body['stage']}" if body.get("stage") else ""
        body["error"] = f"the worker on {body.get('host', 'an unknown host')} was lost{stage}"
        self.put(self.attempt_key(item, attempt, "lost"), {**body, "ended_at": _now()})
        self.store.delete(running)

    def _body(self, key: str) -> dict[str, Any] | None:
        """A record; None if it went meanwhile or is no JSON object."""
        try:
            body = json.loads(self.store.get(key))
        except (StorageError, ValueError):
            return None
        return body if isinstance(body, dict) else None

    def now(self) -> float:
        """The time by the store's clock: leases are held against times that it wrote, and this machine's may differ.

        Who may only read cannot ask it, nor take anything up; this machine's clock will do then.
        """
        if self._ahead_seconds is None:
            try:
                self._ahead_seconds = self._asked_clock() - time.time()
            except UnavailableError:
                raise
            except StorageError as error:
                log.info("taking this machine's clock for the store's: %s", error)
                self._ahead_seconds = 0.0
            if abs(self._ahead_seconds) > self.settings.lease_seconds / 2:
                log.warning("the clock of %s is %.0f s ahead of this machine's", self.store.url, self._ahead_seconds)
        return time.time() + self._ahead_seconds

    def _asked_clock(self) -> float:
        """When the store says that it wrote an object just now, Unix time in s."""
        folder = f"probes/{uuid.uuid4().hex}/"
        self.store.put_atomic(f"{folder}clock", b"")
        modified = next((entry.modified for entry in self.store.entries(folder)), time.time())
        self.store.delete(f"{folder}clock")
        return modified

    def _read(self, entries: Iterator[Entry]) -> dict[str, Standing]:
        found: dict[str, Standing] = {}
        for entry in entries:
            match = _KEY.fullmatch(entry.key)
            if match is None:
                continue
            standing = found.setdefault(match["plan"], Standing(unquote(match["drop"])))
            standing.since = max(standing.since, entry.modified)
            if match["video"]:
                standing.done = match["video"]
            elif match["aside"]:
                setattr(standing, match["aside"], True)
            elif match["state"] != "running":
                standing.states[match["attempt"]] = match["state"]  # type: ignore[assignment]
            elif self.now() - entry.modified > self.settings.lease_seconds:
                standing.lapsed.append(match["attempt"])
            else:
                standing.live[match["attempt"]] = entry.modified
        for standing in found.values():  # killed between its two writes: the outcome is what counts
            standing.live = {key: at for key, at in standing.live.items() if key not in standing.states}
            standing.lapsed = [key for key in standing.lapsed if key not in standing.states]
        return found

    def _folder(self, drop: str, plan_key: str) -> str:
        return f"work/{partition(drop)}/{plan_key}/"


class Attempt:
    """One attempt under way: it gives signs of life until its block ends, and records how it ended.

    Leaving the block without `done`, it is recorded as failed; as unavailable where the store or the disk of this
    machine was at fault; as cancelled where the process was told to stop.

    Attributes:
        number: which attempt this is, from 1, counting those that count.
        quarantined: after the block, whether it was the last that the work got.
    """

    def __init__(self, records: WorkLog, item: Item, run_id: str, number: int) -> None:
        self.records, self.item, self.run_id, self.number = records, item, run_id, number
        self.id = f"{int(time.time() * 1000):013x}-{uuid.uuid4().hex[:8]}"
        self.quarantined = False
        self.stage = "start"
        self._started_at = _now()
        self._finished = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="masksieve-attempt", daemon=True)

    def __enter__(self) -> Self:
        self.records.put(self._key("running"), self._about())
        self._thread.start()
        return self

    def done(self, report: VideoReport) -> None:
        """Record that the work is committed and derived, and remove the traces of getting there."""
        self._end_beats()
        about = {**self._about(), "video_id": report.video_id, "status": report.status, "generation": report.generation}
        self.records.put(self.records.done_key(self.item, report.video_id), about)
        self._finished = True
        self.records.retry(self.item.drop, self.item.plan_key)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_beats()
        if self._finished:
            return
        try:
            self.record(error)
        except StorageError as failed:  # unless this process catches up, it will count as lost
            self.records._unrecorded.append((self, error))
            log.warning("could not record how an attempt at %s ended: %s", self.item.video, failed)

    def record(self, error: BaseException | None) -> None:
        """Write down how it ended: with this error, or by leaving its block without one."""
        if isinstance(error, ForgottenError):
            self.records.forget(self.item)
            return
        state: State = "failed"
        full = isinstance(error, OSError) and error.errno in FULL  # wherever it was written
        if full or isinstance(error, UnavailableError | DiskSpaceError):
            state = "unavailable"
        elif error is None or not isinstance(error, Exception):
            state = "cancelled"
        reason = masked(" ".join(str(error).split())) if error is not None else "left without a result"
        if error is not None and not isinstance(error, MasksieveError):
            reason = f"{type(error).__name__}: {reason}".rstrip(": ")
        self.records.put(self._key(state), {**self._about(), "error": reason, "ended_at": _now()})
        self.records.store.delete(self._key("running"))
        if state in COUNTED and self.records.standing(self.item).counted >= self.records.settings.max_attempts:
            self.records.quarantine(self.item)
            self.quarantined = True

    def _beat(self) -> None:
        while not self._stop.wait(self.records.settings.lease_seconds / BEATS_PER_LEASE):
            try:
                self.records.put(self._key("running"), self._about())
            except StorageError as error:
                log.info("no sign of life from %s: %s", self.item.video, error)

    def _end_beats(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _key(self, state: State) -> str:
        return self.records.attempt_key(self.item, self.id, state)

    def _about(self) -> dict[str, Any]:
        return {
            **asdict(self.item), "attempt": self.id, "number": self.number, "run_id": self.run_id, "stage": self.stage,
            "host": socket.gethostname(), "started_at": self._started_at, "at": _now(),
        }  # fmt: skip


def started_at(attempt: str) -> float:
    """When an attempt began, by its name, Unix time in s by the clock of its machine."""
    return int(attempt.split("-")[0], 16) / 1000


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
