"""Garbage of an output: what no commit names and nobody is still writing; listed first, removed only when asked to.

What is true is read after what lies there was listed, so that whatever was committed meanwhile counts, and it is read
once more right before something is removed. A commit that cannot be read ends it all: its files look like orphans.
"""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pyarrow.parquet as pq

from pipeline.errors import StorageError, UnavailableError
from pipeline.ledger import Commit, Ledger, commit_key, commit_of, forgotten_key
from pipeline.records import read_metadata
from pipeline.review.answers import read_answers
from pipeline.settings import DropSettings
from pipeline.snapshot.manifest import MANIFEST, PART_KEY, read_manifest
from pipeline.storage.download import Entry
from pipeline.storage.manifest import derived_key, partition
from pipeline.storage.objects import ObjectStore
from pipeline.work import WorkLog

log = logging.getLogger(__name__)

LAYERS = ("masks", "candidates", "tokens", "review_images", "labels", "review", "probes", "snapshots")
WORKERS = 16
CLOCKS_SECONDS = 600.0
"""By so much the clock of a worker, which names its attempt, may be ahead of the store's."""

_VIDEO = r"(?P<video>[0-9a-f]{64})"
_FACTS = re.compile(rf"(?:masks|candidates|tokens)/drop=[^/]+/{_VIDEO}-[^/]+\.parquet")
_DERIVED = re.compile(rf"(?P<layer>labels|review)/drop=[^/]+/{_VIDEO}\.parquet")
_PICTURE = re.compile(rf"review_images/{_VIDEO}/(?P<generation>\d{{6,}})/[^/]+")
_SNAPSHOT = re.compile(r"(?P<folder>snapshots/[^/]+/)(?P<name>.+)")


@dataclass(frozen=True, slots=True)
class Orphan:
    """One object that can go.

    Args:
        key: where it lies; of an upload that never ended, where it would have come to lie.
        modified: Unix time in s.
        reason: why nobody needs it.
        upload: names the upload, for one that never ended.
    """

    key: str
    size_bytes: int
    modified: float
    reason: str
    upload: str | None = None


@dataclass(frozen=True, slots=True)
class Garbage:
    """What a look at an output found.

    Args:
        orphans: what can go, by key.
        kept_young: orphans by all signs that are too young, or that an attempt under way may still commit.
        videos: how many are committed.
    """

    orphans: tuple[Orphan, ...]
    kept_young: int
    videos: int

    @property
    def size_bytes(self) -> int:
        return sum(one.size_bytes for one in self.orphans)


@dataclass(slots=True)
class Committed:
    """What is true of one video, as far as garbage is concerned.

    Args:
        generation: the newest; first_seen, since: its drop for readers, and when it was committed (Unix time in s).
        newest: keys of its facts, and of those that people's answers are about; older: of those of other generations
            before.
    """

    generation: int
    first_seen: str
    since: float
    newest: frozenset[str]
    older: frozenset[str] = field(default_factory=frozenset)

    @classmethod
    def of(cls, commits: Iterable[Commit], judged: Collection[int] = ()) -> Committed:
        """From all generations of one video.

        Args:   judged: generations whose masks people answered about. Their facts are evidence, and stay.
        """
        *before, last = sorted(commits, key=lambda commit: commit.generation)
        kept = {last.corrects, *judged}
        older = frozenset(file.key for commit in before if commit.generation not in kept for file in commit.files)
        staying = [last, *(commit for commit in before if commit.generation in kept)]
        keys = frozenset(file.key for commit in staying for file in commit.files)
        return cls(last.generation, last.first_seen, last.finished_at.timestamp(), keys, older - keys)


class Sweep:
    """Looks for garbage in one output and removes it.

    Args:
        store, ledger: the output.
        settings: the lease by which attempts are under way.
        older_than_seconds: nothing that was written since goes; 0 only while nobody writes.
        superseded: facts of generations that are not the newest go as well. Their commits stay: the count of
            generations goes on from them, and nothing reads their facts once the labels are of a newer one, but for
            those of generations that people answered about.
    """

    def __init__(
        self,
        store: ObjectStore,
        ledger: Ledger,
        settings: DropSettings,
        *,
        older_than_seconds: float = 86_400.0,
        superseded: bool = False,
    ) -> None:
        self.store, self.ledger, self.superseded = store, ledger, superseded
        self._work = WorkLog(store, settings)
        self._before = self._work.now() - older_than_seconds

    def look(self) -> Garbage:
        """Everything that can go.

        Raises: StorageError if a listing fails half-way, or a commit cannot be read or is missing between others.
        """
        listed = {layer: list(self.store.entries(f"{layer}/")) for layer in LAYERS}
        staged = list(self.store.staged())
        standings = self._work.standings()
        forgotten = {entry.key[len("forgotten/") : -len(".json")] for entry in self.store.entries("forgotten/")}
        known = self._commits(forgotten)
        finished = {one.done for one in standings.values() if one.done} - forgotten
        labelled = {_video(entry.key) for entry in listed["labels"]} - {None} - forgotten
        if not known and finished | labelled:
            raise StorageError(
                "commits beside labels and finished work", "none", "restore commits/, or forget the videos"
            )
        if lost := finished - known.keys():
            log.warning("kept the files of %d videos that are finished on record and have no commit", len(lost))
        begun = [int(name.split("-")[0], 16) / 1000 for one in standings.values() for name in one.live]
        self._before = min([self._before, *(at - CLOCKS_SECONDS for at in begun)])
        found, young = [], 0
        for entry, reason in self._orphans(listed, known, forgotten):
            video = _video(entry.key)
            if video in lost:
                continue
            if video in forgotten or entry.modified < self._before:
                found.append(Orphan(entry.key, entry.size_bytes, entry.modified, reason))
            else:
                young += 1
        for one in staged:
            if one.modified < self._before:
                reason = "upload that never ended" if one.upload else "temporary file of a writer that is gone"
                found.append(Orphan(one.key, one.size_bytes, one.modified, reason, one.upload))
            else:
                young += 1
        for plan, standing in standings.items():
            if standing.done in lost:
                continue  # it is being labelled anew, and what became of that counts
            if standing.done and (standing.states or standing.lapsed or standing.quarantined):
                for entry in self.store.entries(f"work/{partition(standing.drop)}/{plan}/"):
                    if "/done-" not in entry.key and entry.modified < self._before:
                        found.append(Orphan(entry.key, entry.size_bytes, entry.modified, "record of finished work"))
        return Garbage(tuple(sorted(found, key=lambda one: one.key)), young, len(known))

    def remove(self, orphans: Iterable[Orphan], progress: Callable[[Orphan], None] | None = None) -> list[Orphan]:
        """Remove what `look` found, unless something speaks for it by now.

        Args:    progress: called for each that went, from several threads.
        Returns: those that went.
        Raises:  StorageError for the first that could not be judged or removed; the others are done all the same.
        """
        groups: dict[str, list[Orphan]] = defaultdict(list)
        for orphan in orphans:
            groups[_video(orphan.key) or orphan.key].append(orphan)
        gone: list[Orphan] = []

        def work_off(group: list[Orphan]) -> None:
            for orphan in group:
                if not self._still(orphan):
                    log.info("kept %s: something speaks for it by now", orphan.key)
                    continue
                if orphan.upload is None:
                    self.store.delete(orphan.key)
                else:
                    self.store.abort(orphan.key, orphan.upload)
                gone.append(orphan)
                if progress is not None:
                    progress(orphan)

        with ThreadPoolExecutor(WORKERS) as pool:
            ended = [pool.submit(work_off, group) for group in groups.values()]
        for one in ended:
            one.result()
        return sorted(gone, key=lambda one: one.key)

    def _orphans(
        self, listed: dict[str, list[Entry]], known: dict[str, Committed], forgotten: set[str]
    ) -> Iterator[tuple[Entry, str]]:
        """What nothing speaks for, whatever its age."""
        everything = [entry for entries in listed.values() for entry in entries]
        derived = self._derived_of(everything, known)
        for entry in everything:
            video = _video(entry.key)
            if entry.key.startswith("probes/"):
                yield entry, "probe of a writer that is gone"
            elif video is None:
                continue  # of a snapshot, or not ours
            elif video in forgotten:
                yield entry, "of a video that was forgotten"
            elif reason := self._reason(entry.key, known.get(video), derived.get(video, 0)):
                yield entry, reason

        folders: dict[str, list[Entry]] = defaultdict(list)
        for entry in listed["snapshots"]:
            if match := _SNAPSHOT.fullmatch(entry.key):
                folders[match["folder"]].append(entry)
        for folder, entries in folders.items():
            if self._idle(entries):
                reasons = self._snapshot_reasons(folder)
                yield from ((entry, reason) for entry in entries if (reason := reasons(entry.key)))

    def _idle(self, entries: Iterable[Entry]) -> bool:
        """Whether nobody is writing a snapshot that consists of these."""
        return all(entry.modified < self._before for entry in entries)

    def _snapshot_reasons(self, folder: str) -> Callable[[str], str | None]:
        """Says of an object of a snapshot why it can go, None if it must stay."""
        if not self.store.exists(f"{folder}{MANIFEST}"):
            return lambda key: "snapshot that was never finished"
        try:
            named = {part.key for part in read_manifest(self.store, folder).parts}
        except UnavailableError:
            raise
        except StorageError as error:
            log.warning("kept all of %s: %s", self.store.uri(folder), error)
            return lambda key: None

        def reason(key: str) -> str | None:
            name = key.removeprefix(folder)
            return "part that no manifest names" if re.match(PART_KEY, name) and name not in named else None

        return reason

    def _derived_of(self, entries: Iterable[Entry], known: dict[str, Committed]) -> dict[str, int]:
        """Of which generation the labels in place are, for the videos of which files of older ones lie around."""
        asked = set()
        for entry in entries:
            video = _video(entry.key)
            if video is None or (committed := known.get(video)) is None:
                continue
            match = _PICTURE.fullmatch(entry.key)
            if (self.superseded and entry.key in committed.older) or (
                match and int(match["generation"]) < committed.generation
            ):
                asked.add(video)
        with ThreadPoolExecutor(WORKERS) as pool:
            return dict(pool.map(lambda video: (video, self._derived(video, known[video])), asked))

    def _reason(self, key: str, known: Committed | None, derived: int) -> str | None:
        """Why an object of a video can go; None if it must stay.

        Args:   derived: the generation that its labels in place are of, which may lag behind.
        """
        if _FACTS.fullmatch(key):
            if known is None or key not in known.newest | known.older:
                return "facts that no commit names"
            settled = known.since < self._before and derived == known.generation
            return "facts of an older generation" if self.superseded and settled and key in known.older else None
        if match := _PICTURE.fullmatch(key):
            generation = int(match["generation"])
            if known is None or generation > known.generation:
                return "pictures of no commit"
            return "pictures of an older generation" if generation < min(known.generation, derived) else None
        match = _DERIVED.fullmatch(key)
        assert match is not None
        if known is None:
            return "labels of no commit"
        here = derived_key(match["layer"], known.first_seen, match["video"])
        return None if key == here else "labels under another drop"

    def _derived(self, video: str, known: Committed) -> int:
        """The generation that both derived files in place are of at least, 0 without them."""
        found = []
        for layer in ("labels", "review"):
            key = derived_key(layer, known.first_seen, video)
            if not self.store.exists(key):
                return 0
            with self.store.open(key) as file:
                found.append(int(read_metadata(pq.read_schema(file)).get("generation", 0)))
        return min(found)

    def _commits(self, forgotten: set[str]) -> dict[str, Committed]:
        """What is true of every video that was not forgotten."""
        self.ledger.newest_generations()  # writes the JSON of what only SQL knows
        generations: dict[str, list[int]] = defaultdict(list)
        for key in self.store.list("commits/"):
            named = commit_of(key)
            if named is None:
                raise StorageError("nothing but commits under commits/", self.store.uri(key), "move it elsewhere")
            if named[0] not in forgotten:
                generations[named[0]].append(named[1])
        with ThreadPoolExecutor(WORKERS) as pool:
            return dict(pool.map(lambda one: (one[0], self._read(*one)), generations.items()))

    def _read(self, video: str, generations: Iterable[int]) -> Committed:
        """What is true of one video. Raises StorageError for a commit that is missing, damaged or of something else."""
        commits = []
        for expected, generation in enumerate(sorted(generations), 1):
            if generation != expected:
                uri = self.store.uri(commit_key(video, expected))
                raise StorageError(f"a commit at {uri}", "none, and later ones", "restore it, or forget the video")
            commit = self.ledger.read(video, generation)
            if (commit.video_id, commit.generation) != (video, generation):
                uri = self.store.uri(commit_key(video, generation))
                raise StorageError(f"the commit of its name at {uri}", "another one", "restore it")
            commits.append(commit)
        judged = {one.generation for one in read_answers(self.store, video)} if self.superseded else ()
        return Committed.of(commits, judged)

    def _still(self, orphan: Orphan) -> bool:
        """Whether nothing speaks for it by now either."""
        if orphan.upload is not None or orphan.key.startswith(("probes/", "work/")) or _hidden(orphan.key):
            return True
        if match := _SNAPSHOT.fullmatch(orphan.key):
            idle = self._idle(self.store.entries(match["folder"]))  # a new run of the name writes the same parts anew
            return idle and self._snapshot_reasons(match["folder"])(orphan.key) is not None
        video = _video(orphan.key)
        assert video is not None
        if self.store.exists(forgotten_key(video)):
            return True
        generations = self.ledger.generations(video)
        known = self._read(video, generations) if generations else None
        derived = 0 if known is None else self._derived(video, known)
        return self._reason(orphan.key, known, derived) is not None


def _video(key: str) -> str | None:
    """The video that an object of a known layer is of."""
    match = _FACTS.fullmatch(key) or _PICTURE.fullmatch(key) or _DERIVED.fullmatch(key)
    return match["video"] if match else None


def _hidden(key: str) -> bool:
    return key.rpartition("/")[2].startswith(".")
