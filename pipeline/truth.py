"""Truth of an output's rows, in whatever format it comes: their IoU, streamed, one video in memory at a time."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import rle
from pipeline.columns import Floats, equals, floats, given
from pipeline.drops import VIDEO_SUFFIXES
from pipeline.judged import Fact, Judged, Source, TruthError, said
from pipeline.ledger import Commit, Ledger
from pipeline.local_facts import local_facts
from pipeline.records import read_metadata
from pipeline.review.as_made import as_made, light_rows, outdated
from pipeline.storage.objects import ObjectStore
from pipeline.traces import json_body
from pipeline.truth_coco import CocoVideos
from pipeline.truth_masks import NPZ, NpzFolder, PaletteFolders
from pipeline.truth_rows import RowFiles
from usam.errors import DatasetError

log = logging.getLogger(__name__)

FORMATS = "a COCO JSON, Parquet rows, a folder of VIDEO/00000.png or of STEM.truth.npz"
_MASKS = ("frame_index", "object_id", "height", "width", "rle", "area_px", "visibility")
_BATCH_ROWS = 1024


@dataclass(frozen=True, eq=False)
class VideoTruth:
    """The judged rows of one video.

    Args:
        commit: of the facts. metadata: what the facts say of themselves.
        facts: their columns but for the masks, one row per judged row.
        iou_n: (n,) in [0, 1]. weight_n: (n,) so many rows each stands for. See `Judged`.
        predicted: predictions of the whole video, judged or not.
    """

    commit: Commit
    metadata: dict[str, Any]
    facts: pa.Table
    iou_n: Floats
    weight_n: Floats
    predicted: int

    def digest(self) -> bytes:
        """SHA-256 of what was said of which rows."""
        found = hashlib.sha256(self.commit.video_id.encode())
        for name in ("frame_index", "object_id"):
            found.update(floats(self.facts, name).tobytes())
        found.update(self.iou_n.tobytes() + self.weight_n.tobytes())
        return found.digest()


def open_truth(path: str | Path) -> Source:
    """Truth at a local path, in whatever format it has.

    Raises: TruthError for a path that leads to none; DatasetError for one that is damaged.
    """
    if "://" in str(path):
        raise TruthError("truth on this machine", str(path), "download it first")
    root = Path(path).expanduser()
    if root.suffix == ".json" and root.is_file():
        return CocoVideos(root)
    if root.is_file() and root.suffix == ".parquet":
        return RowFiles(root)
    if not root.is_dir():
        got = "nothing there" if not root.exists() else f"a file that is neither, {root.name}"
        raise TruthError(f"truth at {root}: {FORMATS}", got, "check the path")
    if next(root.glob(f"*{NPZ}"), None) is not None:
        return NpzFolder(root)
    if next(root.rglob("*.parquet"), None) is not None:
        return RowFiles(root)
    return PaletteFolders(root)


def read_truth(
    source: Source,
    store: ObjectStore,
    *,
    drops: Sequence[str] = (),
    corrected: bool = False,
    scratch_dir: Path | None = None,
) -> Iterator[VideoTruth]:
    """Hold the newest facts of every video that truth speaks of against it, as the model alone made them.

    Videos and rows that the output does not have are passed over, and corrected videos whose masks or scores were made
    anew since; a video under several names is one.

    Args:
        source: from `open_truth`.
        drops: only videos that were first seen in these, all if empty.
        corrected: take the facts with what people corrected in them, which says nothing of masks that nobody has seen.
    Yields: videos in the order of the truth, those without a judged row left out.
    Raises: TruthError if it fits no row at all, names a video that could be several, or says two things of one row;
            StorageError for facts that are damaged.
    """
    named, unknown = _videos(source, store, drops)
    ledger, found, old = Ledger(store), 0, 0
    for names, newest in named:
        commit = newest if corrected else as_made(ledger, newest)
        if outdated(commit, newest) and not corrected:
            old += 1
            continue
        video = _judged(source, names, commit, store, scratch_dir)
        if video is not None:
            found += 1
            yield video
    told = f"{len(unknown)}, such as {', '.join(unknown[:3])}" if unknown else "none"
    if old:
        log.warning("left out %d videos: they were labelled or scored anew with what people had corrected in them", old)
    if not found:
        got = f"{len(named)} of its videos there and no row of them, {told} not there"
        raise TruthError(f"truth of masks in {store.url}", got, "give the output that the truth is of")
    if unknown:
        log.warning("passed over videos of the truth that are not in the output: %s", told)


def _videos(
    source: Source, store: ObjectStore, drops: Sequence[str]
) -> tuple[list[tuple[list[str], Commit]], list[str]]:
    """The labelled videos that truth speaks of, each with all its names there; and the names that lead to none."""
    ledger, names = Ledger(store), list(source.names())
    endings = _Endings(names)
    leads: dict[str, set[str]] = {name: set() for name in names}
    commits: dict[str, Commit] = {}

    def note(found: Iterable[str], video_id: str) -> bool:
        for name in found:
            leads[name].add(video_id)
        return bool(found)

    for commit in ledger.read_all():
        own = [commit.video_id] if commit.video_id in leads else []
        if note([*own, *endings.of(commit.video_uri)], commit.video_id):
            commits[commit.video_id] = commit
    if not all(leads.values()):  # other names of a video are on record where work on them ended
        for key in store.list("work/"):
            if "/done-" in key and isinstance(uri := json_body(store, key).get("video"), str):
                note(endings.of(uri), key.rpartition("/done-")[2].removesuffix(".json"))
        missing = set().union(*leads.values()) - set(commits)
        commits |= {one.video_id: one for one in ledger.read_all(missing)}
    videos: dict[str, list[str]] = {}
    for name, ids in leads.items():
        there = [one for one in ids if one in commits and (not drops or commits[one].first_seen in drops)]
        if len(there) > 1:
            got = f"{len(there)}: {', '.join(sorted(one[:12] for one in there))}"
            raise TruthError(f"one video by the name {name}", got, "name it by video_id, or with its folder")
        for video_id in there:
            videos.setdefault(video_id, []).append(name)
    reached = {name for found in videos.values() for name in found}
    return [(found, commits[one]) for one, found in videos.items()], [name for name in names if name not in reached]


class _Endings:
    """Finds the names that an address ends in, with or without its suffix: `clip`, `clip.mp4`, `night/clip`."""

    def __init__(self, names: Iterable[str]) -> None:
        self._by_last: dict[str, list[str]] = {}
        for name in names:
            self._by_last.setdefault(_stem(name).rpartition("/")[2], []).append(name)

    def of(self, uri: str) -> list[str]:
        whole = f"/{_stem(uri)}"
        return [one for one in self._by_last.get(whole.rpartition("/")[2], ()) if whole.endswith(f"/{_stem(one)}")]


def _stem(name: str) -> str:
    """A path or address without the suffix of a video."""
    path = PurePosixPath(name)
    return name.removesuffix(path.suffix) if path.suffix.lower() in VIDEO_SUFFIXES else name


def _judged(
    source: Source, names: Sequence[str], commit: Commit, store: ObjectStore, scratch_dir: Path | None
) -> VideoTruth | None:
    """The judged rows of a video; None if there is none."""
    with local_facts(store, commit, scratch_dir) as path, pq.ParquetFile(path) as file:
        rows: dict[tuple[int, int], Judged] = {}
        for name in names:
            try:
                for one in source.judge(name, _facts(file)):
                    key = one.frame_index, one.object_id
                    if rows.setdefault(key, one) != one:
                        got = f"two under the names {', '.join(names)}, for {said(name, *key)}"
                        raise TruthError("one truth of a video", got, "keep one of them")
            except DatasetError as error:
                raise TruthError(error.expected, error.got, error.next_step) from error
        if not rows:
            return None
        table, metadata = light_rows(file), read_metadata(file.schema_arrow)
    keys = zip(table.column("frame_index").to_pylist(), table.column("object_id").to_pylist(), strict=True)
    found = [rows.get(key) for key in keys]
    judged = [one for one in found if one is not None]
    predicted_n = ~equals(table, "visibility", "untracked") & ~given(table)
    return VideoTruth(
        commit, metadata, table.filter(pa.array([one is not None for one in found])),
        np.array([one.iou for one in judged]), np.array([one.weight for one in judged]), int(predicted_n.sum()),
    )  # fmt: skip


def _facts(file: pq.ParquetFile) -> Iterator[Fact]:
    """The rows that the model looked at."""
    for batch in file.iter_batches(_BATCH_ROWS, columns=list(_MASKS)):
        for row in batch.to_pylist():
            if row["visibility"] != "untracked":
                where = row["frame_index"], row["object_id"], row["height"], row["width"]
                yield Fact(*where, row["rle"] or rle.empty_mask(*where[2:]).counts, row["area_px"] or 0)
