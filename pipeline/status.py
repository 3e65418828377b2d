"""Where every drop stands: counts from the names of its records and its last plan, bodies only of what needs a look."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, get_args

from pipeline.certificate import standings as certificates
from pipeline.plan import BUCKETS, LISTED
from pipeline.settings import DropSettings
from pipeline.storage.manifest import partition
from pipeline.storage.objects import ObjectStore
from pipeline.storage.secrets import masked
from pipeline.suggest import nearest
from pipeline.traces import json_body
from pipeline.work import Standing, WorkLog, started_at

State = Literal["running", "failed", "unavailable", "cancelled", "quarantined", "forgotten"]
WORKERS = 16
SHOWN = 200
"""Bodies of at most so many records of one state of a drop are read."""
SHORTEST_PREFIX = 6


@dataclass(frozen=True, slots=True)
class Line:
    """One video that is not simply done or waiting.

    Args:
        video: its name; None if the record does not say, as of a forgotten one.
        state: running; failed, unavailable (store or disk) or cancelled, and will be tried again; quarantined;
            forgotten on request, and refused since.
        attempts: failed and lost ones so far, of so many that it gets.
        stage, host, seconds: where a running attempt is, and for how long.
        error: why, in one line, without keys of stores.
    """

    drop: str
    plan_key: str
    video: str | None
    state: State
    attempts: int
    attempts_max: int
    stage: str | None = None
    host: str | None = None
    seconds: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class DropStatus:
    """Where one drop stands.

    Args:
        root: where it lies; planned_seconds: how old its last plan is. None both if none is on record.
        listed: videos at the last plan; done, waiting: now. None where only a plan could tell. Another drop of the same
            name shares done and forgotten, and its lines; what waits is the planned one's alone.
        running, failed, unavailable, cancelled, quarantined: how many; their lines are in `lines`, the first `SHOWN`.
        forgotten: videos that were refused because somebody asked to forget them; they have no lines.
        settling, needs_prompts, refused: at the last plan, with the first names of the second.
        repairs: videos of the output whose labels are missing.
    """

    drop: str
    root: str | None
    planned_seconds: float | None
    listed: int | None
    done: int
    waiting: int | None
    running: int
    failed: int
    unavailable: int
    cancelled: int
    quarantined: int
    forgotten: int = 0
    settling: int = 0
    needs_prompts: int = 0
    refused: int = 0
    repairs: int = 0
    without_prompts: tuple[str, ...] = ()
    refusals: tuple[str, ...] = ()
    lines: tuple[Line, ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class CertificateLine:
    """A certificate of the output.

    Args:
        promise, confidence: what of accepted masks holds, and how surely.
        thresholds: highest and lowest that it certifies, None for none; groups: how many have one.
        state: valid, expired, void or not_certified. text: until when, or why not.
    """

    id: str
    promise: str
    confidence: float
    thresholds: tuple[float, float] | None
    groups: int
    videos: int
    state: str
    text: str


@dataclass(frozen=True)
class OutputStatus:
    """Where an output stands: its drops, how many videos are committed, whoever labelled them, and its certificates."""

    url: str
    committed: int
    drops: tuple[DropStatus, ...]
    certificates: tuple[CertificateLine, ...] = ()

    @property
    def quarantined(self) -> int:
        return sum(one.quarantined for one in self.drops)


def output_status(store: ObjectStore, settings: DropSettings, drop: str | None = None) -> OutputStatus:
    """Look at all drops, or at one.

    Raises: StorageError.
    """
    work = WorkLog(store, settings)
    with ThreadPoolExecutor(2) as pool:
        standings = pool.submit(work.standings, drop)
        committed = pool.submit(lambda: len({entry.key.split("/")[1] for entry in store.entries("commits/")}))
        plans = {plan["drop"]: plan for plan in _plans(store) if drop in (None, plan["drop"])}
    by_drop: dict[str, dict[str, Standing]] = defaultdict(dict)
    for plan_key, standing in standings.result().items():
        by_drop[standing.drop][plan_key] = standing
    names = sorted(by_drop.keys() | plans.keys())
    found = tuple(_drop_status(work, name, by_drop.get(name, {}), plans.get(name)) for name in names)
    return OutputStatus(store.url, committed.result(), found, _certificates(store))


def _certificates(store: ObjectStore) -> tuple[CertificateLine, ...]:
    found = []
    for one, state, text in certificates(store):
        limits = [group.threshold for group in one.groups if group.threshold is not None]
        span = (max(limits), min(limits)) if limits else None
        videos = sum(group.videos for group in one.groups)
        line = CertificateLine(one.id, str(one.promise), one.confidence, span, len(limits), videos, state, text)
        found.append(line)
    return tuple(found)


def _drop_status(
    work: WorkLog, drop: str, standings: Mapping[str, Standing], plan: Mapping[str, Any] | None
) -> DropStatus:
    grouped: dict[State, list[str]] = {state: [] for state in get_args(State)}
    for plan_key, standing in standings.items():
        if (state := _state(standing)) is not None:
            grouped[state].append(plan_key)
    counts: dict[str, Any] = {state: len(keys) for state, keys in grouped.items()}
    planned_at = None if plan is None else datetime.fromisoformat(plan["at"]).timestamp()
    lines: list[Line] = []
    for state, keys in grouped.items():
        keys.sort(key=lambda key: -standings[key].since)
        for line in _lines(work, drop, state, keys[:SHOWN], standings) if state != "forgotten" else ():
            if plan is not None and _outdated(line, standings[line.plan_key], plan, planned_at or 0.0):
                counts[state] -= 1
            else:
                lines.append(line)
    if plan is None or planned_at is None:
        done = sum(standing.done is not None for standing in standings.values())
        return DropStatus(drop, None, None, None, done, None, **counts, lines=tuple(lines))
    planned = defaultdict(int, plan["counts"])
    new = sum(standing.done is not None and standing.since > planned_at for standing in standings.values())
    open_then = planned["wanted"] + planned["live"] + planned["quarantined"]
    return DropStatus(
        drop,
        plan["root"],
        max(0.0, work.now() - planned_at),
        sum(planned[name] for name in BUCKETS),
        planned["done"] + new,
        max(0, open_then - new - _begun(counts, lines, plan["root"]) - _refused_since(standings, planned_at)),
        **counts,
        settling=planned["settling"],
        needs_prompts=planned["needs_prompts"],
        refused=planned["refused"],
        repairs=planned["repairs"],
        without_prompts=tuple(plan.get("needs_prompts", ())),
        refusals=tuple(f"{one['video']}: {one['reason']}" for one in plan.get("refused", ())),
        lines=tuple(lines),
    )


def _begun(counts: Mapping[str, int], lines: Sequence[Line], root: str) -> int:
    """How many of the videos that the last plan had open were begun, or are set aside."""
    elsewhere = sum(not _lies_below(line, root) for line in lines)
    return sum(number for state, number in counts.items() if state != "forgotten") - elsewhere


def _refused_since(standings: Mapping[str, Standing], planned_at: float) -> int:
    """How many were open at the last plan and turned out to be forgotten."""
    return sum(one.forgotten and one.since > planned_at for one in standings.values())


def _lies_below(line: Line, root: str) -> bool:
    """Whether a video is of the drop at this place; one without a name is taken for it."""
    return line.video is None or line.video.startswith(f"{root.rstrip('/')}/")


def tried_work(work: WorkLog, drop: str | None = None) -> Iterator[Line]:
    """Every piece of work that was begun and is not done, with its names: what `retry` can choose from."""
    by_drop: dict[str, dict[str, Standing]] = defaultdict(dict)
    for plan_key, standing in work.standings(drop).items():
        by_drop[standing.drop][plan_key] = standing
    for name, standings in sorted(by_drop.items()):
        states = {plan_key: state for plan_key, one in standings.items() if (state := _state(one)) is not None}
        for state in sorted(set(states.values())):
            yield from _lines(work, name, state, sorted(key for key, one in states.items() if one == state), standings)


def matching(word: str, lines: Iterable[Line]) -> list[Line]:
    """The work that a word names: a video's address, the end of it, or the beginning of a plan key."""
    found = list(lines)
    exact = [line for line in found if line.video == word]
    if exact:
        return exact
    by_name = [line for line in found if line.video is not None and line.video.endswith(f"/{word.lstrip('/')}")]
    if by_name:
        return by_name
    return [line for line in found if len(word) >= SHORTEST_PREFIX and line.plan_key.startswith(word)]


def nearest_video(word: str, lines: Iterable[Line]) -> str | None:
    """The video whose name is most like a word."""
    by_name = {line.video.rpartition("/")[2]: line.video for line in lines if line.video}
    near = nearest(word.rpartition("/")[2], by_name)
    return None if near is None else by_name[near]


def _state(standing: Standing) -> State | None:
    """What there is to tell of a piece of work; None if it is done, or nobody began it."""
    if standing.quarantined:  # even if it was done once: its commit was lost
        return "quarantined"
    if standing.done is not None:
        return None
    if standing.forgotten:
        return "forgotten"
    if standing.live:
        return "running"
    ended = {**standing.states, **dict.fromkeys(standing.lapsed, "lost")}
    if not ended:
        return None
    last = ended[max(ended)]  # attempts are named by the time of their beginning
    return last if last in ("unavailable", "cancelled") else "failed"  # type: ignore[return-value]


def _lines(
    work: WorkLog, drop: str, state: State, keys: Iterable[str], standings: Mapping[str, Standing]
) -> list[Line]:
    def line(plan_key: str) -> Line:
        standing = standings[plan_key]
        folder = f"work/{partition(drop)}/{plan_key}/"
        if state == "forgotten":
            return _line(drop, plan_key, {}, state, 0, work)
        if state == "quarantined":
            body = json_body(work.store, f"{folder}quarantined.json")
            tried, error = len(body.get("attempts", ())) or standing.counted, body.get("error")
            return _line(drop, plan_key, body, state, tried, work, error=error)
        if state == "running":
            attempt = max(standing.live)
            body = json_body(work.store, f"{folder}attempt-{attempt}.running.json")
            seconds = max(0.0, work.now() - started_at(attempt))
            where: dict[str, Any] = {"stage": body.get("stage"), "host": body.get("host"), "seconds": seconds}
            return _line(drop, plan_key, body, state, standing.counted, work, **where)
        ended: dict[str, str] = {**standing.states, **dict.fromkeys(standing.lapsed, "running")}
        attempt = max(ended)
        body = json_body(work.store, f"{folder}attempt-{attempt}.{ended[attempt]}.json")
        error = body.get("error")
        if attempt in standing.lapsed:
            error = (
                f"the worker on {body.get('host', 'an unknown host')} was lost while at {body.get('stage', 'start')}"
            )
        return _line(drop, plan_key, body, state, standing.counted, work, error=error)

    with ThreadPoolExecutor(WORKERS) as pool:
        return list(pool.map(line, keys))


def _line(
    drop: str,
    plan_key: str,
    body: Mapping[str, Any],
    state: State,
    attempts: int,
    work: WorkLog,
    *,
    error: str | None = None,
    **where: Any,
) -> Line:
    text = None if error is None else masked(" ".join(str(error).split()))
    return Line(drop, plan_key, body.get("video"), state, attempts, work.settings.max_attempts, **where, error=text)


def _outdated(line: Line, standing: Standing, plan: Mapping[str, Any], planned_at: float) -> bool:
    """Whether the last plan no longer listed this work: the file, its prompts or the settings are others by now.

    Of another drop by the same name that plan says nothing.
    """
    if standing.since > planned_at or line.video is None or not _lies_below(line, plan["root"]):
        return False
    buckets = ("quarantined",) if line.state == "quarantined" else ("wanted", "live", "settling", "needs_prompts")
    complete = all(plan["counts"].get(name, 0) <= LISTED for name in buckets)
    return complete and not any(line.video in plan.get(name, ()) for name in buckets)


def _plans(store: ObjectStore) -> Iterator[dict[str, Any]]:
    """The last plans that can be read."""
    keys = [key for key in store.list("plans/") if key.endswith(".json")]
    with ThreadPoolExecutor(WORKERS) as pool:
        for body in pool.map(lambda key: json_body(store, key), keys):
            if isinstance(body.get("counts"), dict) and {"drop", "root", "at"} <= body.keys():
                yield body


def age(seconds: float) -> str:
    """A length of time as people say it: 90 -> "90 s", 7200 -> "2.0 h"."""
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}" if seconds >= 10 * length else f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"
