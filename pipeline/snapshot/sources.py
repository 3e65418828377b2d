"""Which videos a snapshot is made of, and where the bytes of each still lie."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from urllib.parse import unquote

from pipeline.errors import DiskSpaceError, MasksieveError, StorageError, UnavailableError, VideoError
from pipeline.ledger import Ledger
from pipeline.prefetch import Prefetch
from pipeline.snapshot.manifest import LeftOut
from pipeline.source import LocalVideo
from pipeline.storage.manifest import VIDEO_ID, derived_key
from pipeline.storage.objects import ObjectStore

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A labelled video as its newest commit tells of it.

    Args:
        key: of its labels. drop: under which they lie.
        rows: of the facts. facts_sha256: of their file.
    """

    video_id: str
    video_uri: str
    drop: str
    key: str
    generation: int
    rows: int
    facts_sha256: str

    @property
    def name(self) -> str:
        """The video's file name, for people."""
        return PurePosixPath(self.video_uri).name

    def left_out(self, reason: str) -> LeftOut:
        """This video as one that is not in, and why."""
        return LeftOut(video_id=self.video_id, video_uri=self.video_uri, drop=self.drop, reason=reason)


def find_candidates(store: ObjectStore, ledger: Ledger, drops: Sequence[str]) -> tuple[list[Candidate], list[LeftOut]]:
    """Every labelled video once, by video_id, and what lies among the labels without being one.

    Args:    drops: only these, all if empty.
    Raises:  StorageError if there are no labels, or a drop has none.
    """
    found: dict[str, list[tuple[str, str]]] = {}
    for key in store.list("labels/"):
        path = PurePosixPath(key)
        if path.suffix == ".parquet" and path.parent.name.startswith("drop=") and VIDEO_ID.fullmatch(path.stem):
            found.setdefault(path.stem, []).append((unquote(path.parent.name.removeprefix("drop=")), key))
    there = {drop for places in found.values() for drop, _ in places}
    if not there:
        raise StorageError(f"labels in {store.url}", "none", "give the --out of masksieve label")
    if missing := sorted(set(drops) - there):
        step = f"choose among {', '.join(sorted(there))}"
        raise StorageError("drops that have labels", f"none in {', '.join(missing)}", step)
    wanted = {key: places for key, places in found.items() if not drops or any(drop in drops for drop, _ in places)}
    commits = {one.video_id: one for one in ledger.read_all(wanted if drops else None)}
    candidates, left_out = [], []
    for video_id, places in sorted(wanted.items()):
        commit = commits.get(video_id)
        if commit is None:
            reason = "labels without a commit"
            left_out.append(LeftOut(video_id=video_id, video_uri="", drop=places[0][0], reason=reason))
            continue
        key = derived_key("labels", commit.first_seen, video_id)
        candidate = Candidate(
            video_id, commit.video_uri, commit.first_seen, key, commit.generation, commit.rows,
            commit.file("masks").sha256,
        )  # fmt: skip
        if (commit.first_seen, key) not in places:
            left_out.append(candidate.left_out("its labels lie under another drop than its commits say"))
        elif not drops or commit.first_seen in drops:
            candidates.append(candidate)
    return candidates, left_out


class Sources:
    """Finds the very bytes that were labelled, whatever name still leads to them.

    Args:
        store, ledger: of the output.
        ahead: brings videos to local disk.
    """

    def __init__(self, store: ObjectStore, ledger: Ledger, ahead: Prefetch) -> None:
        self._store, self._ledger, self._ahead = store, ledger, ahead

    @contextmanager
    def video(self, candidate: Candidate) -> Iterator[LocalVideo]:
        """The video on local disk for the length of the block, its content verified.

        Raises: VideoError if no known name leads to these bytes any more; UnavailableError, DiskSpaceError.
        """
        problems = []
        with ExitStack() as stack:
            for uri in self._addresses(candidate):
                with ExitStack() as attempt:
                    try:
                        local = attempt.enter_context(self._ahead.video(uri))
                    except (UnavailableError, DiskSpaceError):
                        raise
                    except MasksieveError as error:
                        problems.append(" ".join(str(error).split()))
                        continue
                    if local.video_id == candidate.video_id:
                        stack.push(attempt.pop_all())
                        break
                    problems.append(f"other bytes at {uri}")
            else:
                step = "bring the file back, or leave it out of the snapshot"
                raise VideoError(f"the bytes of {candidate.name}", "; ".join(problems), step)
            yield local

    def _addresses(self, candidate: Candidate) -> Iterator[str]:
        """Where the video was last labelled, then every other place that is on record."""
        told = {candidate.video_uri}
        yield candidate.video_uri
        for generation in range(candidate.generation - 1, 0, -1):
            uri = self._ledger.read(candidate.video_id, generation).video_uri
            if uri not in told:
                told.add(uri)
                yield uri
        for key in self._done.get(candidate.video_id, ()):
            listed = self._listed(key)
            if listed is not None and listed not in told:
                told.add(listed)
                yield listed

    @cached_property
    def _done(self) -> dict[str, list[str]]:
        """Records of work that is done, by video_id: of the same bytes under several names each has one."""
        found: dict[str, list[str]] = {}
        for key in self._store.list("work/"):
            name = PurePosixPath(key).name
            if name.startswith("done-"):
                found.setdefault(name.removeprefix("done-").removesuffix(".json"), []).append(key)
        return found

    def _listed(self, key: str) -> str | None:
        try:
            uri = json.loads(self._store.get(key))["video"]
        except (StorageError, ValueError, KeyError, TypeError):
            return None
        return uri if isinstance(uri, str) else None
