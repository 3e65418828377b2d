"""Removes a video from an output for good, on request, and searches the whole output afterwards to prove it.

A tombstone comes first: from then on no writer can commit the video or derive its labels. The commits go nearly last:
they say by which names the video is known, so a run that was killed finds them again and ends what it began.
"""

from __future__ import annotations

import json
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.drops import PROMPTS_SUFFIX
from pipeline.errors import MasksieveError, VideoError
from pipeline.job_checkpoint import discard_checkpoints_of
from pipeline.ledger import Ledger, forgotten_key
from pipeline.models import cache_root
from pipeline.scratch import scratch_folder, sweep_scratch
from pipeline.settings import Settings
from pipeline.snapshot.remove import remove_video, snapshots_with
from pipeline.source import local_video, source_exists, split_url, video_sha256
from pipeline.status import tried_work
from pipeline.storage.manifest import VIDEO_ID
from pipeline.storage.objects import ObjectStore
from pipeline.suggest import nearest
from pipeline.traces import WORKERS, Search, Subject, Trace, json_body, mentions, search, without
from pipeline.work import WorkLog

log = logging.getLogger(__name__)

ROUNDS = 3
"""A writer that was under way may leave something once more; so often it is taken away before the proof."""
POLL_SECONDS = 1.0
SHORTEST_PREFIX = 8
ORDER = (
    "labels", "review", "snapshots", "masks", "candidates", "tokens", "review_images", "plans",
    "answers", "retunes", "work", "commits",
)  # fmt: skip
"""What goes first. Records that name a video's id, and so its names, stay until the end; see `_rank`."""


class UnderWay(MasksieveError):
    """Somebody is working on the video at this moment."""


@dataclass(frozen=True)
class Known:
    """What an output knows of its videos' names.

    Args:
        names: URIs of videos and of their prompts by video_id.
        nameless: video_ids with a commit that is no commit, so that names may be missing.
    """

    names: Mapping[str, frozenset[str]]
    nameless: frozenset[str] = frozenset()

    def subject(self, video_id: str | None, more: Iterable[str] = ()) -> Subject:
        """A video with the names that are its alone.

        Args:   more: further names that it goes by.
        Raises: VideoError if its commit does not say by which names it goes, and nothing else does: a search for the
                id alone would overlook them.
        """
        if video_id in self.nameless and not self.names[video_id] and not more:
            got = f"a damaged one of {video_id[:12]}"
            raise VideoError("a commit that names its video", got, "name the video by its path or address")
        others = frozenset().union(*(names for key, names in self.names.items() if key != video_id))
        own = (self.names.get(video_id, frozenset()) if video_id else frozenset()) | frozenset(more)
        return Subject(video_id, frozenset(name for name in own if name) - others)

    def shared(self, subject: Subject) -> frozenset[str]:
        """Names that the video has in common with others that stay."""
        own = self.names.get(subject.video_id, frozenset()) if subject.video_id else frozenset()
        return own - subject.uris


@dataclass(frozen=True)
class Forgotten:
    """What was done, and what is left.

    Args:
        removed: how many objects went, by layer; blotted: plans and records of others that named it.
        snapshots: those that were written anew without it.
        checkpoints: saved jobs on this machine that were removed.
        proof: the search of the whole output afterwards.
        unreached: what this command cannot remove, in words.
    """

    subject: Subject
    removed: Mapping[str, int]
    blotted: int
    snapshots: tuple[str, ...]
    checkpoints: int
    proof: Search
    unreached: tuple[str, ...]


def known_videos(store: ObjectStore) -> Known:
    """Read all commits and records of finished work.

    Raises: StorageError if one is there and cannot be read: its names would be overlooked.
    """
    names: dict[str, set[str]] = defaultdict(set)
    nameless = set()
    keys = [key for key in store.list("commits/") if key.count("/") == 2]
    keys += [key for key in store.list("work/") if "/done-" in key]
    with ThreadPoolExecutor(WORKERS) as pool:
        for key, body in zip(keys, pool.map(lambda key: json_body(store, key), keys), strict=True):
            video_id = key.split("/")[1] if key.startswith("commits/") else key.rpartition("/done-")[2][: -len(".json")]
            names[video_id] |= {
                body[name] for name in ("video_uri", "video", "prompts") if isinstance(body.get(name), str)
            }
            if key.startswith("commits/") and not isinstance(body.get("video_uri"), str) and store.exists(key):
                nameless.add(video_id)
    for key in store.list("forgotten/"):
        names[key[len("forgotten/") : -len(".json")]] |= set()
    return Known({video_id: frozenset(found) for video_id, found in names.items()}, frozenset(nameless))


def find_subject(store: ObjectStore, video: str, settings: Settings, known: Known) -> Subject:
    """Which video is meant.

    Args:    video: a local path, an s3:// URL, a video_id or the beginning of one, or the end of a name that the output
                 knows, such as its file name.
    Raises:  VideoError if the output knows no such video, or several.
    """
    if VIDEO_ID.fullmatch(video):
        return known.subject(video)
    path = Path(video).expanduser()
    if "://" not in video:
        forms = {str(path.absolute()), str(path.resolve())}
        if path.is_file():
            return known.subject(video_sha256(path), forms)
    else:
        forms = {video}
    named = sorted(key for key, names in known.names.items() if names & forms)
    if not named:
        end = f"/{video.lstrip('/')}"
        named = sorted(key for key, names in known.names.items() if any(name.endswith(end) for name in names))
        forms = forms if not named else set()
    if not named and len(video) >= SHORTEST_PREFIX:
        named = sorted(key for key in known.names if key.startswith(video))
        forms = forms if not named else set()
    if len(named) > 1:
        ids = ", ".join(one[:12] for one in named)
        raise VideoError(f"one video by the name {video}", f"{len(named)}: {ids}", "name it by its video_id")
    if named:
        return known.subject(named[0], forms)
    if "://" in video and source_exists(video, settings.storage):
        with scratch_folder(settings) as scratch, local_video(video, settings.storage, Path(scratch)) as local:
            return known.subject(local.video_id, forms)
    subject = known.subject(None, forms)
    if any(mentions(json_body(store, key), subject.pattern) for key in store.list("work/")):
        return subject  # never labelled, and its file is gone, but records name it
    by_name = {name.rpartition("/")[2]: name for names in known.names.values() for name in names}
    near = nearest(video.rpartition("/")[2], by_name)
    step = f"did you mean {by_name[near]}?" if near else "name it by its path, address or video_id"
    raise VideoError(f"a video that {store.url} knows", video, step)


def forget(
    store: ObjectStore,
    ledger: Ledger,
    settings: Settings,
    subject: Subject,
    *,
    wait: bool = False,
    delete_source: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Forgotten:
    """Remove a video from every layer, snapshot, plan and record, and search for what is left.

    Args:
        wait: for attempts at it that are under way; otherwise they are an error (the tombstone is written: they fail,
            and the same call later goes on).
        delete_source: also the video itself, where its bytes are still those.
        progress: told each step in words.
    Returns: what was done; `proof.traces` is empty if nothing is left.
    Raises:  UnderWay; StorageError.
    """
    tell = progress or (lambda words: None)
    unreached: list[str] = []
    if subject.video_id is not None:
        body = {"video_id": subject.video_id, "at": datetime.now(UTC).isoformat(timespec="seconds")}
        store.put_if_absent(forgotten_key(subject.video_id), json.dumps(body, indent=1).encode())
    _let_attempts_end(store, WorkLog(store, settings.drops), subject, wait, tell)
    done = _Removal(store, ledger, settings, subject)
    for _ in range(ROUNDS):
        tell("removing what there is of it")
        if done.once(search(store, subject, deep=False)):
            done.once(search(store, subject, deep=False))  # somebody may have written while we removed
        if subject.video_id is not None:
            ledger.remove(subject.video_id)
        tell("searching the whole output")
        proof = search(store, subject, ledger=ledger)
        if not any(removable(one) for one in proof.traces):
            break
    checkpoints = _local_state(settings, subject, unreached)
    _sources(settings, subject, delete_source, unreached)
    unreached += _out_of_reach(store)
    return Forgotten(
        subject, dict(done.removed), done.blotted, tuple(sorted(done.snapshots)), checkpoints, proof, tuple(unreached)
    )  # fmt: skip


def removable(trace: Trace) -> bool:
    """Whether it is an object of ours that can go or be blotted; what else a person put into the output stays."""
    if trace.litter:
        return True
    return trace.layer in (("plans", "retunes", "work") if trace.how == "text" else ORDER if trace.how == "key" else ())


class _Removal:
    """Removes what a search found, and counts it."""

    def __init__(self, store: ObjectStore, ledger: Ledger, settings: Settings, subject: Subject) -> None:
        self.store, self.ledger, self.settings, self.subject = store, ledger, settings, subject
        self.removed: dict[str, int] = defaultdict(int)
        self.blotted = 0
        self.snapshots: set[str] = set()

    def once(self, found: Search) -> bool:
        """One pass over all layers, in order. Returns whether there was anything to do."""
        video_id = self.subject.video_id
        traces = sorted((one for one in found.traces if removable(one)), key=_rank)
        early = [one for one in traces if one.layer in ("labels", "review")]
        late = [one for one in traces if one.layer not in ("labels", "review", "snapshots")]
        for trace in early:
            self._remove(trace)
        names = snapshots_with(self.store, video_id) if video_id else []
        for name in names:
            with scratch_folder(self.settings) as scratch:
                remove_video(self.store, name, video_id or "", scratch_dir=Path(scratch))
            self.snapshots.add(name)
        for trace in late:
            if trace.how == "text" and not trace.litter:
                self._take_out(trace)
            else:
                self._remove(trace)
        return bool(early or names or late)

    def _remove(self, trace: Trace) -> None:
        if trace.upload is not None:
            self.store.abort(trace.key, trace.upload)
        elif trace.layer == "commits" and self.subject.video_id is not None:
            self.ledger.remove(self.subject.video_id)  # a row in SQL would write it anew
        else:
            self.store.delete(trace.key)
        self.removed[trace.layer] += 1

    def _take_out(self, trace: Trace) -> None:
        """Remove a record of the video, or blot its name out of one of others."""
        version = self.store.version(trace.key)
        body = json_body(self.store, trace.key)
        if not body or body.get("video") in self.subject.uris:
            self._remove(trace)
        elif version is not None:
            blotted = json.dumps(without(body, self.subject.pattern), indent=1)
            self.blotted += self.store.replace(trace.key, blotted.encode(), version)


def undo(store: ObjectStore, settings: Settings, video_id: str) -> bool:
    """Remove the tombstone, so that the video may be labelled again. Returns whether there was one.

    Work that was set aside for a tombstone has no name: all of it is taken up once more, and refused again if it must.
    """
    key = forgotten_key(video_id)
    if not store.exists(key):
        return False
    store.delete(key)
    work = WorkLog(store, settings.drops)
    for line in tried_work(work):
        if line.state == "forgotten":
            work.retry(line.drop, line.plan_key)
    return True


def _rank(trace: Trace) -> tuple[int, str]:
    """Labels first, then facts; what tells the names of the video by its id goes last of all."""
    layer = ORDER.index(trace.layer) if trace.layer in ORDER else len(ORDER)
    return layer if "/done-" not in trace.key else len(ORDER) + 1, trace.key


def _let_attempts_end(
    store: ObjectStore, work: WorkLog, subject: Subject, wait: bool, tell: Callable[[str], None]
) -> None:
    """Raises UnderWay if somebody works on the video and nobody wants to wait."""
    told = False
    while live := _attempts(store, work, subject):
        hosts = ", ".join(
            sorted({f"{one.get('host', 'an unknown host')} ({one.get('stage', 'start')})" for one in live})
        )
        if not wait:
            step = "it can no longer commit; run the same again when it has ended, or with --wait"
            raise UnderWay("no attempt at the video under way", f"one on {hosts}", step)
        if not told:
            tell(f"waiting for an attempt on {hosts} to end")
            told = True
        time.sleep(POLL_SECONDS)


def _attempts(store: ObjectStore, work: WorkLog, subject: Subject) -> list[dict[str, Any]]:
    """The records of attempts under way at the video, by any of its names."""
    found = []
    for plan, standing in work.standings().items():
        if standing.live:
            for body in work.attempts(standing.drop, plan):
                if body["state"] == "running" and {body.get("video"), body.get("prompts")} & subject.uris:
                    found.append(body)
    return found


def _local_state(settings: Settings, subject: Subject, unreached: list[str]) -> int:
    """Remove what jobs saved on this machine; returns how many."""
    if subject.video_id is None:
        return 0
    sweep_scratch(settings)  # of killed jobs: a download of it may lie there
    root = settings.output.scratch_dir or cache_root(settings.model.cache_dir)
    gone, held = discard_checkpoints_of(root / "checkpoints", subject.video_id)
    unreached += [f"a job that runs on this machine and saves to {folder}" for folder in held]
    return gone


def _sources(settings: Settings, subject: Subject, delete: bool, unreached: list[str]) -> None:
    """Remove the video itself where that is asked for, and say where it or its prompts still lie."""
    for uri in sorted(subject.uris):
        try:
            if not source_exists(uri, settings.storage):
                continue
            if delete and _has_these_bytes(uri, subject, settings):
                folder, name = split_url(uri)
                if "://" in uri:
                    ObjectStore(folder, settings.storage).delete(name)
                else:
                    Path(uri).unlink()
                continue
        except (MasksieveError, OSError) as error:
            unreached.append(f"{uri}: {error}")
            continue
        kept = "other bytes under its name" if delete else "the video or other bytes under its name"
        kept = "its prompts" if uri.endswith(PROMPTS_SUFFIX) else kept
        unreached.append(f"{uri} ({kept}); while it lies in a drop, plans name it")


def _has_these_bytes(uri: str, subject: Subject, settings: Settings) -> bool:
    with scratch_folder(settings) as scratch, local_video(uri, settings.storage, Path(scratch)) as local:
        return local.video_id == subject.video_id


def _out_of_reach(store: ObjectStore) -> list[str]:
    """What no command here can remove."""
    said = []
    versions = store.keeps_versions()
    if versions:
        said.append("earlier versions of the removed objects: the bucket keeps versions; delete them there")
    elif versions is None and "://" in store.url:
        said.append("earlier versions of the removed objects, if the store keeps any (it did not say)")
    return [
        *said,
        "checkpoints, scratch and commit ledgers of other machines",
        "databases of review queues: they keep what was asked and answered about it",
        "models that were trained on it, and snapshots that were written or copied elsewhere",
        "backups, logs of what ran, and runs and events on a Prefect server",
    ]  # fmt: skip
