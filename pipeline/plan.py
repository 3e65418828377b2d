"""What to do about a drop: every listed video in one bucket, those that are wanted in batches, from key names alone.

One listing of the drop and one of each small layer of the output; nothing is downloaded and no record's body is read.
Planning again after any crash finds what is still wanted.
"""

from __future__ import annotations

import hashlib
import json
import logging
import posixpath
import re
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import quote

from pipeline.drops import PROMPTS_SUFFIX, drop_name, is_video, pair_names
from pipeline.errors import SettingsError, StorageError, VideoError
from pipeline.fact_settings import settings_digest
from pipeline.ledger import commit_of
from pipeline.names import shown, unhandled_name
from pipeline.settings import DropSettings, Settings
from pipeline.storage.download import Entry
from pipeline.storage.objects import ObjectStore
from pipeline.work import Item, Standing, WorkLog, plan_key

log = logging.getLogger(__name__)

Bucket = Literal["wanted", "live", "settling", "needs_prompts", "quarantined", "forgotten", "refused", "done"]
BUCKETS: tuple[Bucket, ...] = get_args(Bucket)
LISTED = 1000
"""So many names of a bucket are written down; the counts are of all."""
REPAIRS_PER_BATCH = 200
END_BYTES = 1 << 16
_DERIVED = re.compile(r"(?:labels|review)/drop=[^/]+/([0-9a-f]{64})\.parquet")
_FORGOTTEN = re.compile(r"forgotten/([0-9a-f]{64})\.json")


@dataclass(frozen=True, slots=True)
class Batch:
    """Work for one flow run.

    Args:
        items: by name; videos that may have the same bytes are in one batch, so that the first name gets the labels.
        tried: how many attempts at each item are on record, whatever became of them.
        repairs: video_ids whose labels are to be derived again.
        out: the output.
    """

    items: tuple[Item, ...]
    tried: tuple[int, ...]
    repairs: tuple[str, ...]
    out: str

    @property
    def key(self) -> str:
        """The same for the same work at the same number of attempts."""
        tried = [[item.plan_key, times] for item, times in zip(self.items, self.tried, strict=True)]
        return hashlib.sha256(json.dumps([self.out, tried, self.repairs]).encode()).hexdigest()

    def without(self, plan_keys: Collection[str], repairs: Collection[str]) -> Batch:
        """What is left of it when these are seen to elsewhere."""
        left = [number for number, item in enumerate(self.items) if item.plan_key not in plan_keys]
        return Batch(
            tuple(self.items[number] for number in left), tuple(self.tried[number] for number in left),
            tuple(video_id for video_id in self.repairs if video_id not in repairs), self.out,
        )  # fmt: skip

    def __bool__(self) -> bool:
        return bool(self.items or self.repairs)


@dataclass(frozen=True)
class Plan:
    """What a drop holds, and what is to be done.

    Args:
        drop: its name; root: where it lies.
        at: Unix time in s.
        buckets: every listed video in exactly one: wanted; live (under way elsewhere); settling (perhaps still being
            uploaded); needs_prompts; quarantined; forgotten (on request); refused (a name that cannot be handled);
            done. Each by name.
        refusals: why, by video.
        ahead_of_clock: videos from so far in the future that their age says nothing; they count as uploaded.
        repairs: video_ids that are committed and lack labels or a review list.
        batches: all that is wanted, and the repairs.
        standings: what is on record of the drop, by plan key.
    """

    drop: str
    root: str
    at: float
    buckets: Mapping[Bucket, Sequence[Item]]
    refusals: Mapping[str, str]
    ahead_of_clock: Sequence[str]
    repairs: Sequence[str]
    batches: Sequence[Batch]
    standings: Mapping[str, Standing] = field(default_factory=dict, repr=False)

    @property
    def wanted(self) -> Sequence[Item]:
        """The videos to label."""
        return self.buckets["wanted"]

    @property
    def counts(self) -> dict[str, int]:
        """How many there are of each kind, for people and programs."""
        counts: dict[str, int] = {bucket: len(self.buckets[bucket]) for bucket in BUCKETS}
        return counts | {
            "repairs": len(self.repairs), "ahead_of_clock": len(self.ahead_of_clock), "batches": len(self.batches)
        }  # fmt: skip

    def as_json(self) -> dict[str, Any]:
        """The plan as JSON values: counts of all, and the first `LISTED` names of each bucket."""
        lists: dict[str, Any] = {bucket: [item.video for item in self.buckets[bucket][:LISTED]] for bucket in BUCKETS}
        lists["refused"] = [{"video": name, "reason": self.refusals[name]} for name in lists["refused"]]
        lists |= {"repairs": list(self.repairs[:LISTED]), "ahead_of_clock": list(self.ahead_of_clock[:LISTED])}
        at = datetime.fromtimestamp(self.at, UTC).isoformat(timespec="milliseconds")  # `status` counts from it
        return {"drop": self.drop, "root": self.root, "at": at, "counts": self.counts, **lists}


def plan_drop(
    drop: ObjectStore, out: ObjectStore, settings: Settings, *, name: str | None = None, now: float | None = None
) -> Plan:
    """Compare a drop with what became of its videos.

    Args:
        drop: folder or prefix of videos, with their prompts beside them; read in full depth.
        out: the output.
        settings: of the run.
        name: of the drop; by its folder if None.
        now: Unix time in s by the drop's clock; read if None.
    Raises: VideoError if there is no such folder; ModelError for a model that was not fetched; HeadError; StorageError.
    """
    if "://" not in drop.url and not Path(drop.url).is_dir():
        raise VideoError("a folder of videos, or s3://bucket/prefix", f"no folder {drop.url}", "check the path")
    if name is not None and not name.strip():
        raise SettingsError("a name of the drop", "an empty one", "leave it out, or name it")
    name = name or drop_name(drop.url)
    records = WorkLog(out, settings.drops)
    with ThreadPoolExecutor(2) as pool:  # on a bucket it is waiting for pages that takes the time
        standings = pool.submit(records.standings, name)
        layers = pool.submit(_Layers, out)
        digest = settings_digest(settings)
        listed = _Listing(drop, settings.drops.done_marker)
    standing, videos = standings.result(), layers.result()
    videos.overrule(standing.values())
    if now is None:  # by the clock that wrote the listing's times, as far as it can be asked
        now = records.now() if "://" in drop.url and "://" in out.url else time.time()
    sorter = _Sorter(drop, name, settings, digest, standing, listed, now)
    found: dict[Bucket, list[Item]] = {bucket: [] for bucket in BUCKETS}
    for video, prompts in listed.pairs:
        bucket, item = sorter.sort(video, prompts)
        found[bucket].append(item)
    if sorter.ahead:
        log.warning("%d videos are from the future, %s first: see to the clocks", len(sorter.ahead), sorter.ahead[0])
    # A young commit without labels may be somebody's who is just about to derive them.
    young = records.now() - settings.drops.lease_seconds if found["live"] else float("inf")
    repairs = sorted(video_id for video_id, at in videos.missing.items() if at < young)
    batches = _batches(drop, out, found["wanted"], listed.entries, standing, repairs, settings.drops)
    return Plan(name, drop.url, now, found, sorter.refusals, sorter.ahead, repairs, batches, standing)


def plan_document(drop: str) -> str:
    """The key at which the last plan of a drop lies."""
    return f"plans/{quote(drop, safe='')}.json"


def write_plan(out: ObjectStore, plan: Plan) -> None:
    """Write a plan down for `masksieve status`, over the drop's last one."""
    out.put_atomic(plan_document(plan.drop), json.dumps(plan.as_json(), indent=1).encode())


class _Listing:
    """One pass over a drop: its pairs of video and prompts, and the entries that planning asks about."""

    def __init__(self, drop: ObjectStore, done_marker: str | None) -> None:
        self.entries: dict[str, Entry] = {}
        self.done_marker = done_marker
        self.pairs = pair_names(self._names(drop))

    def _names(self, drop: ObjectStore) -> Iterator[str]:
        markers = (PROMPTS_SUFFIX,) if self.done_marker is None else (PROMPTS_SUFFIX, self.done_marker)
        for entry in drop.entries():
            if any(part.startswith(".") and part not in (".", "..") for part in entry.key.split("/")):
                continue  # hidden: rsync's and desktops' own
            if is_video(entry.key) or entry.key.endswith(markers):
                self.entries[entry.key] = entry
            yield entry.key

    def marked_at(self, video: str) -> float | None:
        """When the video, its folder or the whole drop was last marked as complete; None if none of them is."""
        marker = self.done_marker or ""
        keys = (video + marker, posixpath.join(posixpath.dirname(video), marker), marker)
        return max((self.entries[key].modified for key in keys if key in self.entries), default=None)


class _Sorter:
    """Decides which bucket a video goes into."""

    def __init__(
        self,
        drop: ObjectStore,
        name: str,
        settings: Settings,
        digest: str,
        standings: Mapping[str, Standing],
        listing: _Listing,
        now: float,
    ) -> None:
        self.drop, self.name, self.standings, self.listing, self.now = drop, name, standings, listing, now
        self.settle_seconds = settings.drops.settle_seconds
        self.refuse_missing = settings.prompts.on_missing == "refuse"
        self.digest = digest
        auto = settings.prompts.auto.model_dump(mode="json")
        self.auto_digest = hashlib.sha256(json.dumps([digest, auto], sort_keys=True).encode()).hexdigest()
        self.refusals: dict[str, str] = {}
        self.ahead: list[str] = []

    def sort(self, video: str, prompts: str | None) -> tuple[Bucket, Item]:
        """A video's bucket, by its name in the drop and that of its prompts."""
        if (reason := unhandled_name(video)) is not None:
            where = f"{self.drop.url}/{shown(video)}"
            self.refusals[where] = reason
            return "refused", Item(where, None, self.name, "")
        entries = self.listing.entries
        entry, uri = entries[video], self.drop.uri(video)
        if prompts is None:
            item = Item(uri, None, self.name, plan_key(uri, entry, None, None, self.auto_digest))
        else:
            at = self.drop.uri(prompts)
            item = Item(uri, at, self.name, plan_key(uri, entry, at, entries[prompts], self.digest))
        standing = self.standings.get(item.plan_key)
        if standing is not None and not standing.wanted:
            return _aside(standing), item
        changed = entry.modified if prompts is None else max(entry.modified, entries[prompts].modified)
        if not self._uploaded(video, uri, changed):
            return "settling", item
        return ("needs_prompts" if prompts is None and self.refuse_missing else "wanted"), item

    def _uploaded(self, video: str, uri: str, changed: float) -> bool:
        """Whether nobody is writing to it any more."""
        age = self.now - changed
        settled = age >= self.settle_seconds
        if age < -max(self.settle_seconds, 1.0):  # no waiting for a clock that is wrong
            self.ahead.append(uri)
            settled = True
        if self.listing.done_marker is None:
            return settled
        marked = self.listing.marked_at(video)
        # A marker from before the last change says nothing about it, unless both were copied, in whatever order.
        return marked is not None and (marked >= changed or settled)


def _aside(standing: Standing) -> Bucket:
    """Where work belongs that nobody should take up."""
    if standing.done is not None:
        return "done"
    return "quarantined" if standing.quarantined else "forgotten" if standing.forgotten else "live"


class _Layers:
    """What the output has of its videos, whatever the records of work say.

    Attributes:
        committed: with the time of the newest commit; forgotten: on request.
        missing: those that are committed and lack labels or a review list, with that time.
    """

    def __init__(self, out: ObjectStore) -> None:
        self.out = out
        self.committed = _committed(out)
        self.forgotten = _video_ids(out, "forgotten/", _FORGOTTEN)
        derived = [_video_ids(out, layer, _DERIVED) for layer in ("labels/", "review/")] if self.committed else []
        self.missing = {
            key: at
            for key, at in self.committed.items()
            if key not in self.forgotten and any(key not in layer for layer in derived)
        }

    def overrule(self, standings: Collection[Standing]) -> None:
        """Work whose commit is lost is not done: it is labelled again."""
        known = self.committed.keys() | self.forgotten
        if all(one.done is None or one.done in known for one in standings):
            return
        known |= _committed(self.out).keys()  # it may have come while the records were listed
        lost = [one for one in standings if one.done is not None and one.done not in known]
        for one in lost:
            one.done = None
        if lost:
            log.warning("%d videos are done on record and not committed: they count as never labelled", len(lost))


def _committed(out: ObjectStore) -> dict[str, float]:
    found: dict[str, float] = {}
    for entry in out.entries("commits/"):
        if (named := commit_of(entry.key)) is not None:
            found[named[0]] = max(entry.modified, found.get(named[0], 0.0))
    return found


def _video_ids(out: ObjectStore, layer: str, pattern: re.Pattern[str]) -> set[str]:
    return {match[1] for entry in out.entries(layer) if (match := pattern.fullmatch(entry.key))}


def _batches(
    drop: ObjectStore,
    out: ObjectStore,
    wanted: Sequence[Item],
    entries: Mapping[str, Entry],
    standings: Mapping[str, Standing],
    repairs: Sequence[str],
    settings: DropSettings,
) -> list[Batch]:
    """Cut what is wanted into batches by name, without parting what may be the same bytes."""
    filled: list[list[Item]] = [[]]
    for group in _twins(drop, wanted, entries, settings):
        if filled[-1] and len(filled[-1]) + len(group) > settings.batch_videos:
            filled.append([])
        filled[-1] += group
    parts = [repairs[at : at + REPAIRS_PER_BATCH] for at in range(0, len(repairs), REPAIRS_PER_BATCH)]
    batches = []
    for items, part in zip_longest(filled, parts):
        by_name = sorted(items or (), key=lambda item: item.video)
        records = [standings.get(item.plan_key) for item in by_name]
        tried = [0 if one is None else len(one.states) + len(one.lapsed) for one in records]
        batches.append(Batch(tuple(by_name), tuple(tried), tuple(part or ()), out.url))
    return [batch for batch in batches if batch]


def _twins(
    drop: ObjectStore, wanted: Sequence[Item], entries: Mapping[str, Entry], settings: DropSettings
) -> Iterable[list[Item]]:
    """What is wanted in groups that may have the same bytes, each group and the groups by name.

    Equal bytes have equal sizes and, in a bucket, mostly equal ETags. Recorders that write files of one size make
    groups that tell nothing; where one is more than a batch, its files are told apart by their ends, as far as
    there is room to submit them. The rest are apart until it is their turn.
    """
    remote = "://" in drop.url
    groups: dict[tuple[int, str | bytes | None], list[Item]] = {}
    for item in wanted:
        entry = entries[_key(drop, item)]
        groups.setdefault((entry.size_bytes, entry.tag if remote else None), []).append(item)
    next_ones = {item.plan_key for item in wanted[: settings.batch_videos * settings.max_batches]}
    for (size, told), group in list(groups.items()):
        if len(group) > settings.batch_videos and not remote:
            del groups[size, told]
            for item in group:
                key = _key(drop, item)
                ends = _ends(drop, key, size) if item.plan_key in next_ones else key
                groups.setdefault((size, ends), []).append(item)
    return sorted(groups.values(), key=lambda group: group[0].video)


def _key(drop: ObjectStore, item: Item) -> str:
    return item.video[len(drop.url) + 1 :]


def _ends(drop: ObjectStore, key: str, size_bytes: int) -> bytes:
    """A hash of a file's first and last bytes; of its name if it cannot be read."""
    digest = hashlib.sha256()
    try:
        with drop.open(key) as file:
            digest.update(file.read(END_BYTES))
            file.seek(max(0, size_bytes - END_BYTES))
            digest.update(file.read(END_BYTES))
    except StorageError:
        digest.update(key.encode())
    return digest.digest()
